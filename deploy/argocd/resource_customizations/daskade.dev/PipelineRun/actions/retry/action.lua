-- Another run of the same spec that takes over what this one committed. Labels and annotations are not copied: see the action
-- `run` of Pipelines.
local os = require("os")

local spec = {}
for _, field in ipairs({
  "pipelineRef", "pipelineSpec", "params", "select", "reuse", "deadlines", "ttlAfterFinished", "retention",
}) do
  spec[field] = obj.spec[field]
end
-- A run of a part has loaded outputs that it did not make: it goes by its own spec again.
if spec.select == nil then
  spec.reuse = {mode = "Missing", run = obj.metadata.uid}
end

local labels = {["daskade.dev/trigger"] = "manual"}
if obj.metadata.labels ~= nil then
  labels["daskade.dev/pipeline"] = obj.metadata.labels["daskade.dev/pipeline"]
end
-- Names have at most 53 characters, and here no text can be cut.
local base = obj.metadata.name .. "-retry"
if #base > 42 then
  base = "retry"
end
return {
  {
    operation = "create",
    resource = {
      apiVersion = obj.apiVersion,
      kind = "PipelineRun",
      metadata = {name = base .. "-" .. os.time(), namespace = obj.metadata.namespace, labels = labels},
      spec = spec,
    },
  },
}
