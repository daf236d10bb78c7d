{{- define "switchroom.name" -}}
{{- printf "%s" .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{/* Labels of one component: (list $ "gateway") */}}
{{- define "switchroom.selector" -}}
app.kubernetes.io/name: switchroom
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "switchroom.labels" -}}
{{ include "switchroom.selector" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
helm.sh/chart: {{ printf "%s-%s" (index . 0).Chart.Name (index . 0).Chart.Version }}
{{- end }}

{{- define "switchroom.livekitUrl" -}}
{{- if .Values.livekit.enabled -}}
ws://{{ include "switchroom.name" . }}-livekit:7880
{{- else -}}
{{ required "livekit.url: without livekit.enabled, the address of your livekit-server" .Values.livekit.url }}
{{- end -}}
{{- end }}

{{- define "switchroom.redis" -}}
{{- if .Values.redis.enabled -}}
{{ include "switchroom.name" . }}-redis:6379
{{- else -}}
{{ required "redis.address: without redis.enabled, host:port of your Redis" .Values.redis.address }}
{{- end -}}
{{- end }}

{{- define "switchroom.secret" -}}
{{ required "secret: the name of a Secret with LIVEKIT_API_KEY, LIVEKIT_API_SECRET, SECRETS_KEY and DATABASE_URL" .Values.secret }}
{{- end }}

{{/* One variable from the Secret: (list $ "LIVEKIT_API_KEY") */}}
{{- define "switchroom.fromSecret" -}}
- name: {{ index . 1 }}
  valueFrom:
    secretKeyRef: {name: {{ include "switchroom.secret" (index . 0) }}, key: {{ index . 1 }}}
{{- end }}

{{/* Pods of ours run as the image's user, with nothing that they do not need. */}}
{{- define "switchroom.podSecurity" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: {{ .user }}
  runAsGroup: {{ .user }}
  fsGroup: {{ .user }}
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "switchroom.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* The same for gateway, worker and streams: (list $ "worker" $values $image) */}}
{{- define "switchroom.placement" -}}
{{- $root := index . 0 -}}{{- $component := index . 1 -}}{{- $values := index . 2 -}}
{{- with $root.Values.image.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
{{- if $values.topologySpreadConstraints }}
{{ toYaml $values.topologySpreadConstraints }}
{{- else }}
- maxSkew: 1
  topologyKey: kubernetes.io/hostname
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels: {{- include "switchroom.selector" (list $root $component) | nindent 6 }}
{{- end }}
{{- end }}

{{- define "switchroom.image" -}}
{{- $image := index . 1 -}}
{{ $image.repository }}:{{ $image.tag | default (index . 0).Chart.AppVersion }}
{{- end }}

{{- define "switchroom.envFrom" -}}
- configMapRef: {name: {{ include "switchroom.name" . }}-settings}
- secretRef: {name: {{ include "switchroom.secret" . }}}
{{- end }}

{{/* The volume for DATA_DIR of a worker: (list $values) */}}
{{- define "switchroom.spool" -}}
{{- if .spool.existingClaim }}
persistentVolumeClaim: {claimName: {{ .spool.existingClaim }}}
{{- else }}
emptyDir: {}
{{- end }}
{{- end }}

{{/* Refuses values with which a deploy would cut calls: (list "worker" $values $) */}}
{{- define "switchroom.refuse" -}}
{{- $name := index . 0 -}}{{- $values := index . 1 -}}{{- $root := index . 2 -}}
{{- $margin := 90 -}}
{{- if gt (int $root.Values.longestCallSeconds) (int $values.drainSeconds) -}}
{{- fail (printf "%s.drainSeconds is %d, and longestCallSeconds %d: a deploy would cut calls. Let the worker drain for as long as the longest call." $name (int $values.drainSeconds) (int $root.Values.longestCallSeconds)) -}}
{{- end -}}
{{- if gt (add (int $values.drainSeconds) $margin) (int $values.terminationGracePeriodSeconds) -}}
{{- fail (printf "%s.terminationGracePeriodSeconds is %d: Kubernetes would kill calls before the worker has drained. It must be drainSeconds (%d) + %d at least, in which the last events and recordings are delivered." $name (int $values.terminationGracePeriodSeconds) (int $values.drainSeconds) $margin) -}}
{{- end -}}
{{- end }}

{{/* Calls that hold a place or wait for one. Every gateway tells of all, so the largest counts. */}}
{{- define "switchroom.callsQuery" -}}
{{- $root := index . 0 -}}{{- $kind := index . 1 -}}
{{- $of := printf "{namespace=%q,service=%q,kind=%q" $root.Release.Namespace (printf "%s-gateway" (include "switchroom.name" $root)) $kind -}}
max(switchroom_places{{ $of }},state="taken"}) + max(switchroom_calls_waiting{{ $of }}})
{{- end }}
