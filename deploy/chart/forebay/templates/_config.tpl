{{/* The value `config`, without keys that have no value because everything below them is commented out. */}}
{{- define "forebay.given" -}}
{{- $given := dict -}}
{{- range $key, $value := .Values.config -}}
{{- if not (kindIs "invalid" $value) }}{{ $_ := set $given $key $value }}{{ end -}}
{{- end -}}
{{- $given | toYaml -}}
{{- end -}}

{{/* The names of the clients' Service, the hosts of the Ingress and the HTTPRoute, and `gateway.hosts`. */}}
{{- define "forebay.hosts" -}}
{{- $name := include "forebay.fullname" . -}}
{{- $space := printf "%s.%s" $name .Release.Namespace -}}
{{- $hosts := list $name $space (printf "%s.svc" $space) (printf "%s.svc.%s" $space .Values.gateway.clusterDomain) -}}
{{- if .Values.ingress.enabled }}{{ $hosts = concat $hosts .Values.ingress.hosts }}{{ end -}}
{{- if .Values.httpRoute.enabled }}{{ $hosts = concat $hosts .Values.httpRoute.hostnames }}{{ end -}}
{{- concat $hosts .Values.gateway.hosts | uniq | toJson -}}
{{- end -}}

{{/* The configuration file of both parts. */}}
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
{{- if include "forebay.hasTarget" (list . "keda") -}}
{{- $_ := set $made.scaler "keda" (dict "listen" "0.0.0.0:9910") -}}
{{- end -}}
{{- if not .Values.gateway.tls.secret -}}
{{- $_ := set $made.scaler "gatewayAddress" (printf "%s:%v" $name .Values.gateway.service.port) -}}
{{- end -}}
{{- with .Values.gateway.tls -}}
{{- if .secret -}}
{{- $tls := dict "certFile" "/etc/forebay-tls/tls.crt" "keyFile" "/etc/forebay-tls/tls.key" "minVersion" .minVersion -}}
{{- if .clientCertificates }}{{ $_ := set $tls "clientCaFile" "/etc/forebay-tls/ca.crt" }}{{ end -}}
{{- $_ := set $made.gateway "tls" $tls -}}
{{- end -}}
{{- end -}}
{{- with .Values.gateway.keys -}}
{{- if .secret }}{{ $_ := set $made.gateway "keys" (dict "file" "/etc/forebay-keys" "required" .required) }}{{ end -}}
{{- end -}}
{{- $given := include "forebay.given" . | fromYaml -}}
{{- if dig "scaler" "leaderElection" dict $given -}}
{{- fail "config.scaler.leaderElection: leave it out; the chart sets it, since its Roles name the Lease" -}}
{{- end -}}
{{- if hasKey $given "pools" -}}
{{- fail "config.pools: move them to the value `pools`, from which the chart makes the Roles" -}}
{{- end -}}
{{- mergeOverwrite $made $given | toYaml -}}
{{- end -}}

{{/* A checksum of what a part reads only at its start: (list $ part). The rest is read again by running
pods when the ConfigMap changes. */}}
{{- define "forebay.checksum" -}}
{{- $root := index . 0 -}}
{{- $config := include "forebay.config" $root | fromYaml -}}
{{- $start := pick $config "admin" "logging" "openTelemetry" -}}
{{- if eq (index . 1) "gateway" -}}
{{- $_ := set $start "gateway" (pick $config.gateway "listen" "threads" "scaler" "recordArrivals") -}}
{{- $_ := set $start "writeTimeout" (dig "limits" "writeTimeout" "" $config.gateway) -}}
{{- else -}}
{{- $_ := set $start "scaler" (omit $config.scaler "staleAfter") -}}
{{- end -}}
{{- $_ := set $start "token" $root.Values.adminToken.value -}}
{{- $start | toYaml | sha256sum -}}
{{- end -}}

{{/* A duration of the configuration in whole seconds. */}}
{{- define "forebay.seconds" -}}
{{- $text := toString . -}}
{{- $sum := 0 -}}
{{- range $unit, $seconds := dict "d" 86400 "h" 3600 "m" 60 "s" 1 -}}
{{- with regexFind (printf "[0-9]+%s( |[0-9]|$)" $unit) $text -}}
{{- $sum = regexFind "^[0-9]+" . | int | mul $seconds | add $sum -}}
{{- end -}}
{{- end -}}
{{- ternary $text (toString $sum) (regexMatch "^[0-9]+$" $text) -}}
{{- end -}}
