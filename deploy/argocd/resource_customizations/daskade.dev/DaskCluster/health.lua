local conditions = {}
if obj.status ~= nil and obj.status.conditions ~= nil then
  for _, condition in ipairs(obj.status.conditions) do
    conditions[condition.type] = condition
  end
end
local ready = conditions["Ready"]
if ready == nil or obj.status.observedGeneration ~= obj.metadata.generation then
  return {status = "Progressing", message = "waiting for the daskade operator to process the spec"}
end
local message = ready.reason or ready.status
if ready.message ~= nil and ready.message ~= "" then
  message = message .. ": " .. ready.message
end
if obj.spec.suspend == true then
  return {status = "Suspended", message = message}
end
if conditions["Stalled"] ~= nil and conditions["Stalled"].status == "True" then
  return {status = "Degraded", message = message}
end
if ready.status == "True" then
  return {status = "Healthy", message = message}
end
return {status = "Progressing", message = message}
