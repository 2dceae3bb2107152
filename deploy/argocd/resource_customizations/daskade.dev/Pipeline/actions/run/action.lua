-- A run of the Pipeline as it is, as by `daskade submit`. Nothing of its labels and annotations is copied: a run that carried
-- those by which Argo CD knows the objects of an application would be pruned by the next sync.
local os = require("os")

-- Names have at most 53 characters, and here no text can be cut.
local base = obj.metadata.name
if #base > 42 then
  base = "run"
end
-- An empty mapping says nothing, and would become an empty list.
local retention = obj.spec.retention
if retention ~= nil and next(retention) == nil then
  retention = nil
end
return {
  {
    operation = "create",
    resource = {
      apiVersion = obj.apiVersion,
      kind = "PipelineRun",
      metadata = {
        name = base .. "-" .. os.time(),
        namespace = obj.metadata.namespace,
        labels = {["daskade.dev/pipeline"] = obj.metadata.name, ["daskade.dev/trigger"] = "manual"},
      },
      spec = {pipelineRef = obj.metadata.name, retention = retention},
    },
  },
}
