-- A Pipeline is healthy when it is accepted. Its runs do not count: a long one holds no wave of a sync.
local conditions = {}
if obj.status ~= nil and obj.status.conditions ~= nil then
  for _, condition in ipairs(obj.status.conditions) do
    conditions[condition.type] = condition
  end
end
local function words(condition)
  return (condition.reason or condition.status) .. ": " .. (condition.message or "")
end
local accepted = conditions["Accepted"]
if accepted == nil or obj.status.observedGeneration ~= obj.metadata.generation then
  return {status = "Progressing", message = "waiting for the daskade operator to process the spec"}
end
if accepted.status == "False" then
  return {status = "Degraded", message = words(accepted)}
end
for _, name in ipairs({"Stalled", "Reconciling"}) do
  local trouble = conditions[name]
  if trouble ~= nil and trouble.status == "True" then
    return {
      status = name == "Stalled" and "Degraded" or "Progressing",
      message = "cannot create a run: " .. words(trouble),
    }
  end
end
if obj.spec.schedule ~= nil and obj.spec.schedule.suspend == true then
  return {status = "Suspended", message = "the schedule is suspended"}
end
if obj.status.lastRun ~= nil then
  return {status = "Healthy", message = "accepted; the latest run is " .. obj.status.lastRun}
end
return {status = "Healthy", message = "accepted"}
