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

{{/* The labels that select the pods of a part: (list $ part), or all pods: (list $ ""). */}}
{{- define "forebay.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "forebay.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
{{- with index . 1 }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end -}}

{{/* An object's labels: (list $ part more). Those that select can't be overwritten. */}}
{{- define "forebay.labels" -}}
{{- $root := index . 0 -}}
{{- $own := include "forebay.selector" (list $root (index . 1)) | fromYaml -}}
{{- $chart := dict
  "helm.sh/chart" (printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_")
  "app.kubernetes.io/managed-by" $root.Release.Service
  "app.kubernetes.io/version" $root.Chart.AppVersion -}}
{{- mergeOverwrite $chart (deepCopy ($root.Values.commonLabels | default dict)) (deepCopy (index . 2 | default dict)) $own | toYaml -}}
{{- end -}}

{{- define "forebay.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/* The name of a part's ServiceAccount: (list $ part). */}}
{{- define "forebay.serviceAccount" -}}
{{- $root := index . 0 -}}
{{- $part := index . 1 -}}
{{- $account := (index $root.Values $part).serviceAccount -}}
{{- if $account.name -}}
{{- $account.name -}}
{{- else if $account.create -}}
{{- include "forebay.fullname" $root }}-{{ $part }}
{{- else -}}
{{- fail (printf "%s.serviceAccount.name: give the name of your ServiceAccount, since `create` is false" $part) -}}
{{- end -}}
{{- end -}}

{{/* The Secret with the token of the admin port. */}}
{{- define "forebay.tokenSecret" -}}
{{- .Values.adminToken.secret | default (printf "%s-admin" (include "forebay.fullname" .)) -}}
{{- end -}}

{{/* "yes" if a pool has this kind of target: (list $ kind). */}}
{{- define "forebay.hasTarget" -}}
{{- $kind := index . 1 -}}
{{- range (index . 0).Values.pools }}{{ if and .target (hasKey .target $kind) }}yes{{ end }}{{ end -}}
{{- end -}}
