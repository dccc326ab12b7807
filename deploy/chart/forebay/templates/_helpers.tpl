{{- define "forebay.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "forebay.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains (include "forebay.name" .) .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "forebay.name" .) | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "forebay.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{ include "forebay.selector" . }}
{{- end -}}

{{- define "forebay.selector" -}}
app.kubernetes.io/name: {{ include "forebay.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "forebay.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{- define "forebay.tokenSecret" -}}
{{- .Values.adminTokenSecret | default (printf "%s-admin" (include "forebay.fullname" .)) -}}
{{- end -}}

{{/* Whether some pool has this kind of target. */}}
{{- define "forebay.hasTarget" -}}
{{- $kind := .kind -}}
{{- range .pools }}{{ if and .target (hasKey .target $kind) }}yes{{ end }}{{ end -}}
{{- end -}}

{{/* What `config` gives. A key with nothing under it, as is left by a comment, gives nothing. */}}
{{- define "forebay.given" -}}
{{- $given := dict -}}
{{- range $key, $value := .Values.config -}}
{{- if not (kindIs "invalid" $value) }}{{ $_ := set $given $key $value }}{{ end -}}
{{- end -}}
{{- $given | toYaml -}}
{{- end -}}

{{/* The names of the clients' Service, and what `gateway.hosts` adds. */}}
{{- define "forebay.hosts" -}}
{{- $name := include "forebay.fullname" . -}}
{{- $space := printf "%s.%s" $name .Release.Namespace -}}
{{- $own := list $name $space (printf "%s.svc" $space) (printf "%s.svc.%s" $space .Values.gateway.clusterDomain) -}}
{{- concat $own .Values.gateway.hosts | uniq | toJson -}}
{{- end -}}

{{/* The configuration file, for both parts. */}}
{{- define "forebay.config" -}}
{{- $name := include "forebay.fullname" . -}}
{{- $made := dict
  "gateway" (dict
    "listen" "0.0.0.0:8080"
    "allowedHosts" (include "forebay.hosts" . | fromJsonArray)
    "scaler" (printf "%s-scaler:9900" $name)
    "shutdownTimeout" .Values.gateway.shutdownTimeout)
  "admin" (dict "listen" "0.0.0.0:9900" "tokenFile" "/etc/forebay-admin/token")
  "scaler" (dict
    "gatewayDiscovery" (dict "pods" (dict
      "selector" (printf "app.kubernetes.io/name=%s,app.kubernetes.io/instance=%s,app.kubernetes.io/component=gateway" (include "forebay.name" .) .Release.Name)
      "port" 9900))
    "leaderElection" (dict "lease" (printf "%s-scaler" $name)))
  "pools" .Values.pools -}}
{{- if include "forebay.hasTarget" (dict "pools" .Values.pools "kind" "keda") -}}
{{- $_ := set $made.scaler "keda" (dict "listen" "0.0.0.0:9910") -}}
{{- end -}}
{{- $given := include "forebay.given" . | fromYaml -}}
{{- if dig "scaler" "leaderElection" dict $given -}}
{{- fail "config.scaler.leaderElection: the chart sets it, since its Roles name the Lease" -}}
{{- end -}}
{{- if hasKey $given "pools" -}}
{{- fail "config.pools: write them as `pools`, from which the Roles are made" -}}
{{- end -}}
{{- mergeOverwrite $made $given | toYaml -}}
{{- end -}}

{{- define "forebay.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
# A Secret's files belong to root and to this group.
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "forebay.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "forebay.env" -}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: POD_IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
{{- end -}}
