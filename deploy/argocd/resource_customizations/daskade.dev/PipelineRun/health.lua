-- A run that goes on is healthy: it holds no wave of a sync, however long it takes. It holds one if it is asked to, by the
-- annotation daskade.dev/argocd-wait: "true", or as a hook, Helm's among them.
local conditions = {}
if obj.status ~= nil and obj.status.conditions ~= nil then
  for _, condition in ipairs(obj.status.conditions) do
    conditions[condition.type] = condition
  end
end
local annotations = obj.metadata.annotations or {}
local waits = annotations["daskade.dev/argocd-wait"] == "true" or annotations["argocd.argoproj.io/hook"] ~= nil
  or annotations["helm.sh/hook"] ~= nil
local goes_on = waits and "Progressing" or "Healthy"
local succeeded = conditions["Succeeded"]
if succeeded == nil then
  return {status = "Progressing", message = "waiting for the daskade operator to process the run"}
end
local message = succeeded.reason or succeeded.status
if succeeded.message ~= nil and succeeded.message ~= "" then
  message = message .. ": " .. succeeded.message
end
if obj.status.progress ~= nil then
  message = message .. " (" .. obj.status.progress .. ")"
end
if succeeded.status == "True" then
  return {status = "Healthy", message = message}
end
if succeeded.status == "False" then
  return {status = "Degraded", message = message}
end
if obj.spec.suspend == true and obj.spec.cancel ~= true then
  return {status = "Suspended", message = message}
end
if conditions["Stalled"] ~= nil and conditions["Stalled"].status == "True" then
  return {status = "Degraded", message = message}
end
return {status = goes_on, message = message}
