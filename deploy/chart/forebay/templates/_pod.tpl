{{/* What the pods of both parts share; each takes (list $ part). */}}

{{/* The metadata of a Deployment's pods. */}}
{{- define "forebay.podMetadata" -}}
{{- $root := index . 0 -}}
{{- $values := index $root.Values (index . 1) -}}
labels:
  {{- include "forebay.labels" (list $root (index . 1) $values.podLabels) | nindent 2 }}
annotations:
  {{- mergeOverwrite (deepCopy ($values.podAnnotations | default dict)) (dict "checksum/start" (include "forebay.checksum" .)) | toYaml | nindent 2 }}
{{- end -}}

{{/* The Deployment's strategy. */}}
{{- define "forebay.strategy" -}}
{{- with (index (index . 0).Values (index . 1)).strategy -}}
type: {{ .type }}
{{- if eq .type "RollingUpdate" }}
{{- with .rollingUpdate }}
rollingUpdate: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end -}}
{{- end -}}

{{/* The beginning of a pod's spec. */}}
{{- define "forebay.podSpec" -}}
{{- $root := index . 0 -}}
{{- $values := index $root.Values (index . 1) -}}
serviceAccountName: {{ include "forebay.serviceAccount" . }}
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $root.Values.podSecurityContext }}
securityContext: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
  {{- with $values.topologySpreadConstraints }}
  {{- toYaml . | nindent 2 }}
  {{- else }}
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "forebay.selector" . | nindent 8 }}
  {{- end }}
{{- with $values.initContainers }}
initContainers: {{- toYaml . | nindent 2 }}
{{- end }}
# 288 is 0440, which YAML 1.2 would read as 440.
volumes:
  - name: config
    configMap: {name: {{ include "forebay.fullname" $root }}}
  - name: admin
    secret:
      secretName: {{ include "forebay.tokenSecret" $root }}
      items: [{key: {{ include "forebay.tokenKey" $root }}, path: token}]
      defaultMode: 288
  {{- range $index, $secret := $values.secrets }}
  - name: secret-{{ $index }}
    secret: {secretName: {{ $secret }}, defaultMode: 288}
  {{- end }}
  {{- if eq (index . 1) "gateway" }}
  {{- with $values.tls.secret }}
  - name: tls
    secret: {secretName: {{ . }}, defaultMode: 288}
  {{- end }}
  {{- with $values.keys.secret }}
  - name: keys
    secret: {secretName: {{ . }}, defaultMode: 288}
  {{- end }}
  {{- end }}
  {{- with $values.extraVolumes }}{{ toYaml . | nindent 2 }}{{ end }}
{{- end -}}

{{/* The beginning of the part's own container. */}}
{{- define "forebay.container" -}}
{{- $root := index . 0 -}}
{{- $part := index . 1 -}}
{{- $values := index $root.Values $part -}}
name: {{ $part }}
image: {{ include "forebay.image" $root | quote }}
imagePullPolicy: {{ $root.Values.image.pullPolicy }}
args: [{{ $part }}, --config, /etc/forebay/forebay.yaml]
env:
  - name: POD_NAME
    valueFrom: {fieldRef: {fieldPath: metadata.name}}
  - name: POD_IP
    valueFrom: {fieldRef: {fieldPath: status.podIP}}
  {{- if (include "forebay.config" $root | fromYaml).openTelemetry }}
  - name: OTEL_RESOURCE_ATTRIBUTES
    value: k8s.namespace.name={{ $root.Release.Namespace }},k8s.pod.name=$(POD_NAME)
  {{- end }}
  {{- with $values.extraEnv }}{{ toYaml . | nindent 2 }}{{ end }}
startupProbe:
  httpGet: {path: /healthz, port: admin}
  periodSeconds: 1
  failureThreshold: 60
readinessProbe:
  httpGet: {path: /readyz, port: admin}
  periodSeconds: 2
livenessProbe:
  httpGet: {path: /healthz, port: admin}
  periodSeconds: 10
  failureThreshold: 6
{{- with $root.Values.containerSecurityContext }}
securityContext: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.resources }}
resources: {{- toYaml . | nindent 2 }}
{{- end }}
volumeMounts:
  - {name: config, mountPath: /etc/forebay, readOnly: true}
  - {name: admin, mountPath: /etc/forebay-admin, readOnly: true}
  {{- range $index, $secret := $values.secrets }}
  - {name: secret-{{ $index }}, mountPath: /etc/forebay-secrets/{{ $secret }}, readOnly: true}
  {{- end }}
  {{- if eq $part "gateway" }}
  {{- if $values.tls.secret }}
  - {name: tls, mountPath: /etc/forebay-tls, readOnly: true}
  {{- end }}
  {{- if $values.keys.secret }}
  - {name: keys, mountPath: /etc/forebay-keys, readOnly: true}
  {{- end }}
  {{- end }}
  {{- with $values.extraVolumeMounts }}{{ toYaml . | nindent 2 }}{{ end }}
{{- end -}}

{{/* The key of the token in its Secret. */}}
{{- define "forebay.tokenKey" -}}
{{- if .Values.adminToken.secret }}{{ .Values.adminToken.key }}{{ else }}token{{ end -}}
{{- end -}}

{{/* The part's ServiceAccount and PodDisruptionBudget. */}}
{{- define "forebay.companions" -}}
{{- $root := index . 0 -}}
{{- $part := index . 1 -}}
{{- $values := index $root.Values $part -}}
{{- if $values.serviceAccount.create }}
---
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ include "forebay.serviceAccount" . }}
  labels: {{- include "forebay.labels" (list $root $part dict) | nindent 4 }}
  {{- with $values.serviceAccount.annotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
{{- if $values.podDisruptionBudget.enabled }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "forebay.fullname" $root }}-{{ $part }}
  labels: {{- include "forebay.labels" (list $root $part dict) | nindent 4 }}
spec:
  maxUnavailable: {{ $values.podDisruptionBudget.maxUnavailable }}
  selector:
    matchLabels: {{- include "forebay.selector" . | nindent 6 }}
{{- end }}
{{- end -}}
