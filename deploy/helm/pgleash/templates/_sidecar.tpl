{{/*
For the templates of an application's chart, whose dependency this chart is. "Context" is .Subcharts.pgleash.

  pgleash.inject      (list context workload)  the whole workload with the sidecar, as YAML
  pgleash.sidecar     context                  the container alone, for initContainers
  pgleash.volume      context                  its volume
  pgleash.name        context                  the name of the chart's objects
*/}}

{{- define "pgleash.name" -}}
{{- if contains "pgleash" .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-pgleash" (.Release.Name | trunc 42 | trimSuffix "-") }}{{ end }}
{{- end }}

{{- define "pgleash.labels" -}}
app.kubernetes.io/name: pgleash
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/*
Takes a Deployment, StatefulSet, DaemonSet, Job, CronJob or Rollout. The sidecar comes before its own init containers, so
that they reach the server through it, too. terminationGracePeriodSeconds becomes the sum of the application's own (30 if
it has none), drainTimeoutSeconds, and 5 for pgleash to notice and to end: Kubernetes stops pgleash after the application,
within the same time.
*/}}
{{- define "pgleash.inject" -}}
{{- $context := index . 0 }}
{{- $workload := deepCopy (index . 1) }}
{{- if not (has $workload.kind (list "Deployment" "StatefulSet" "DaemonSet" "Job" "CronJob" "Rollout")) }}
{{- fail (printf "pgleash.inject: %s is no kind that the sidecar is added to" (toString $workload.kind)) }}
{{- end }}
{{- $holder := $workload.spec }}
{{- if eq $workload.kind "CronJob" }}
{{- $holder = $workload.spec.jobTemplate.spec }}
{{- end }}
{{- if not (hasKey $holder "template") }}
{{- fail (printf "pgleash.inject: the %s has no pod template; if it has a workloadRef, inject into what that refers to" $workload.kind) }}
{{- end }}
{{- $metadata := $holder.template.metadata | default dict }}
{{- $annotations := dict "pgleash/config" (sha256sum $context.Values.config) }}
{{- $_ := set $metadata "labels" (merge (dict "pgleash" "sidecar") ($metadata.labels | default dict)) }}
{{- $_ := set $metadata "annotations" (merge $annotations ($metadata.annotations | default dict)) }}
{{- $_ := set $holder.template "metadata" $metadata }}
{{- $pod := $holder.template.spec }}
{{- $own := 30 }}
{{- if hasKey $pod "terminationGracePeriodSeconds" }}
{{- $own = $pod.terminationGracePeriodSeconds }}
{{- end }}
{{- $_ := set $pod "terminationGracePeriodSeconds" (add (int $own) (int $context.Values.drainTimeoutSeconds) 5) }}
{{- $_ := set $pod "initContainers" (prepend ($pod.initContainers | default list) (include "pgleash.sidecar" $context | fromYaml)) }}
{{- $_ := set $pod "volumes" (append ($pod.volumes | default list) (include "pgleash.volume" $context | fromYaml)) }}
{{- toYaml $workload }}
{{- end }}

{{- define "pgleash.volume" -}}
name: pgleash
configMap:
  name: {{ include "pgleash.name" . }}
{{- end }}

{{- define "pgleash.sidecar" -}}
name: pgleash
image: {{ .Values.image.repository }}{{ if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args: [run]
# A native sidecar: it is there before the application, and leaves after it; a Job completes without it.
restartPolicy: Always
env:
  - name: PGLEASH_CONFIG
    value: /etc/pgleash/pgleash.toml
  - name: PGLEASH_ADMIN
    value: {{ printf "0.0.0.0:%d" (int .Values.adminPort) | quote }}
  - name: PGLEASH_DRAIN_TIMEOUT
    value: {{ printf "%ds" (int .Values.drainTimeoutSeconds) }}
  - name: PGLEASH_UPSTREAM_URL
    valueFrom:
      secretKeyRef:
        name: {{ .Values.upstream.secretName }}
        key: {{ .Values.upstream.key }}
  {{- range $key := list "webhook" "slack" "pagerduty" "grafana" }}
  - name: PGLEASH_EVENTS_{{ upper $key }}
    valueFrom:
      secretKeyRef: { name: {{ $.Values.notifications.secretName }}, key: {{ $key }}, optional: true }
  {{- end }}
  {{- with .Values.env }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
ports:
  - name: pgleash-admin
    containerPort: {{ int .Values.adminPort }}
startupProbe:
  exec:
    command: [/pgleash, healthcheck, --ready]
  periodSeconds: 1
  timeoutSeconds: 5
  failureThreshold: 60
# Never asks the database: a database that is away must not restart the sidecar.
livenessProbe:
  exec:
    command: [/pgleash, healthcheck]
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 6
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  readOnlyRootFilesystem: true
  allowPrivilegeEscalation: false
  capabilities:
    drop: [ALL]
  seccompProfile:
    type: RuntimeDefault
resources:
  {{- toYaml .Values.resources | nindent 2 }}
volumeMounts:
  - name: pgleash
    mountPath: /etc/pgleash
    readOnly: true
{{- end }}
