local suspended = obj.spec.suspend == true
return {
  suspend = {disabled = suspended, displayName = "Suspend"},
  resume = {disabled = not suspended, displayName = "Resume"},
}
