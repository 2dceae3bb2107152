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

-- An empty list and an empty mapping are the same in Lua, and its numbers are exact up to 2^53: a spec with such a value cannot
-- be handed on as it is.
local function is_lost(value)
  if type(value) == "number" then
    return value >= 9007199254740992 or value <= -9007199254740992
  end
  if type(value) ~= "table" then
    return false
  end
  if next(value) == nil then
    return true
  end
  for _, inner in pairs(value) do
    if is_lost(inner) then
      return true
    end
  end
  return false
end

return {
  suspend = {disabled = ended or cancelled or suspended, displayName = "Suspend"},
  resume = {disabled = ended or cancelled or not suspended, displayName = "Resume"},
  cancel = {disabled = ended or cancelled, displayName = "Cancel"},
  retry = {disabled = not failed or is_lost(obj.spec), displayName = "Retry failed steps"},
}
