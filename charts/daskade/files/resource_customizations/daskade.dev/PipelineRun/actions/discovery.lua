local suspended = obj.spec.suspend == true
local cancelled = obj.spec.cancel == true
local ended, failed = false, false
if obj.status ~= nil and obj.status.conditions ~= nil then
  for _, condition in ipairs(obj.status.conditions) do
    if condition.type == "Succeeded" and condition.status ~= "Unknown" then
      ended = true
      -- One that never began, or whose outputs were removed, has nothing to go on from.
      failed = condition.status == "False" and obj.status.startedAt ~= nil and obj.status.removed == nil
    end
  end
end

-- An empty list and an empty mapping are the same in Lua: a spec with one cannot be handed on as it is.
local function has_empty(value)
  if type(value) ~= "table" then
    return false
  end
  if next(value) == nil then
    return true
  end
  for _, inner in pairs(value) do
    if has_empty(inner) then
      return true
    end
  end
  return false
end

return {
  suspend = {disabled = ended or cancelled or suspended, displayName = "Suspend"},
  resume = {disabled = ended or cancelled or not suspended, displayName = "Resume"},
  cancel = {disabled = ended or cancelled, displayName = "Cancel"},
  retry = {disabled = not failed or has_empty(obj.spec), displayName = "Retry what failed"},
}
