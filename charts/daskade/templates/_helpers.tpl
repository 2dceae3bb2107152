{{/* The beginning of all names. */}}
{{- define "daskade.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains "daskade" .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-daskade" .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "daskade.operator" -}}
{{- include "daskade.fullname" . }}-operator
{{- end -}}

{{- define "daskade.account" -}}
{{- .Values.serviceAccount.name | default (include "daskade.operator" .) -}}
{{- end -}}

{{/* Name and component are what the network policies of clusters let in: they are no choice. */}}
{{- define "daskade.selector" -}}
app.kubernetes.io/name: daskade
app.kubernetes.io/component: operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Of objects that are not the operator's pods. */}}
{{- define "daskade.common" -}}
app.kubernetes.io/name: daskade
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "daskade.labels" -}}
{{ include "daskade.common" . }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "daskade.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Image of clusters that name none. */}}
{{- define "daskade.workerImage" -}}
{{- .Values.operator.image | default (printf "daskade/worker:%s" .Chart.AppVersion) -}}
{{- end -}}

{{- define "daskade.port" -}}
{{- .Values.operator.listen | splitList ":" | last -}}
{{- end -}}

{{/* A label selector as --namespace-selector takes it. */}}
{{- define "daskade.selectorText" -}}
{{- $parts := list -}}
{{- range $key, $value := .matchLabels -}}
{{- $parts = append $parts (printf "%s=%s" $key $value) -}}
{{- end -}}
{{- range .matchExpressions -}}
{{- if eq .operator "Exists" -}}{{- $parts = append $parts .key -}}{{- end -}}
{{- if eq .operator "DoesNotExist" -}}{{- $parts = append $parts (printf "!%s" .key) -}}{{- end -}}
{{- if eq .operator "In" -}}{{- $parts = append $parts (printf "%s in (%s)" .key (join "," .values)) -}}{{- end -}}
{{- if eq .operator "NotIn" -}}{{- $parts = append $parts (printf "%s notin (%s)" .key (join "," .values)) -}}{{- end -}}
{{- end -}}
{{- join "," $parts -}}
{{- end -}}

{{/* The same namespaces as a selector of namespaces, for policies. */}}
{{- define "daskade.namespaces" -}}
{{- with .Values.operator -}}
{{- if .watchNamespaces -}}
matchExpressions:
  - key: kubernetes.io/metadata.name
    operator: In
    values: {{ toJson .watchNamespaces }}
{{- else -}}
{{ toYaml .namespaceSelector }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* A mapping of labels in which those of the chart stay what they are: (list BY-THE-CHART GIVEN). */}}
{{- define "daskade.merged" -}}
{{- toYaml (merge (fromYaml (index . 0)) (index . 1 | default dict)) -}}
{{- end -}}

{{/* "true" or nothing, for what is on by default where the release has objects of the whole cluster anyway. */}}
{{- define "daskade.aggregate" -}}
{{- if kindIs "invalid" .Values.aggregateRoles.enabled }}{{ if and .Values.rbac.create .Values.rbac.clusterWide }}true{{ end }}{{ else if .Values.aggregateRoles.enabled }}true{{ end -}}
{{- end -}}
{{- define "daskade.policies" -}}
{{- if kindIs "invalid" .Values.policies.enabled }}{{ if .Values.rbac.clusterWide }}true{{ end }}{{ else if .Values.policies.enabled }}true{{ end -}}
{{- end -}}

{{/* What fits no schema. */}}
{{- define "daskade.check" -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" (include "daskade.fullname" .)) -}}
{{- fail (printf "names would begin with %q, which no Service may: give fullnameOverride, a letter first and no dots" (include "daskade.fullname" .)) -}}
{{- end -}}
{{- if and .Values.operator.watchNamespaces (include "daskade.selectorText" .Values.operator.namespaceSelector) -}}
{{- fail "operator.watchNamespaces and operator.namespaceSelector exclude each other: give one of them" -}}
{{- end -}}
{{- if and (not .Values.rbac.clusterWide) (not .Values.operator.watchNamespaces) -}}
{{- fail "rbac.clusterWide: false needs operator.watchNamespaces: the namespaces in which the operator gets a Role" -}}
{{- end -}}
{{- if and .Values.serviceMonitor.enabled (not .Values.service.enabled) -}}
{{- fail "serviceMonitor.enabled needs service.enabled: it finds the operator by its service" -}}
{{- end -}}
{{- if and (has "Deny" .Values.policies.actions) (has "Warn" .Values.policies.actions) -}}
{{- fail "policies.actions: Deny and Warn exclude each other, as the API server has it" -}}
{{- end -}}
{{- with .Values.podDisruptionBudget -}}
{{- if and .enabled (eq (kindIs "invalid" .minAvailable) (kindIs "invalid" .maxUnavailable)) -}}
{{- fail "podDisruptionBudget: give exactly one of minAvailable and maxUnavailable (set the other to null)" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What the operator needs in every namespace that it serves. */}}
{{- define "daskade.rules" -}}
- apiGroups: [daskade.dev]
  resources: [pipelines]
  verbs: [get, list, watch]
# Clusters of runs are made and deleted.
- apiGroups: [daskade.dev]
  resources: [daskclusters]
  verbs: [get, list, watch, create, delete]
# Those that Pipelines make; the finalizer of a run that is open, and the end of its ttlAfterFinished.
- apiGroups: [daskade.dev]
  resources: [pipelineruns]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [daskade.dev]
  resources: [daskclusters/status, pipelines/status, pipelineruns/status]
  verbs: [patch]
# Where OwnerReferencesPermissionEnforcement is on, an owner whose deletion children may block asks for this.
- apiGroups: [daskade.dev]
  resources: [daskclusters/finalizers, pipelineruns/finalizers]
  verbs: [update]
# What a run is carried out from.
- apiGroups: [apps]
  resources: [controllerrevisions]
  verbs: [get, create]
- apiGroups: [""]
  resources: [pods, services]
  verbs: [get, list, watch, create, patch, delete]
# The runtime's: what one holds is in its name, and never changed. Of others only one that a run names as its code, by its name.
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, list, watch, create, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
# By exact name only: never listed, never watched. They go with the cluster that owns them.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, create, patch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end -}}
