-- A run by hand gives no parameters: each needs a default.
local runnable = true
for _, param in ipairs(obj.spec.params or {}) do
  if param.default == nil then
    runnable = false
  end
end
local schedule = obj.spec.schedule
local suspended = schedule ~= nil and schedule.suspend == true
return {
  run = {disabled = not runnable, displayName = "Run now"},
  suspend = {disabled = schedule == nil or suspended, displayName = "Suspend the schedule"},
  resume = {disabled = not suspended, displayName = "Resume the schedule"},
}
