{{- define "larder.name" -}}
{{- if contains "larder" .Release.Name }}{{ .Release.Name | trunc 52 | trimSuffix "-" }}{{ else }}{{ printf "%s-larder" .Release.Name | trunc 52 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "larder.selector" -}}
app.kubernetes.io/name: larder
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "larder.labels" -}}
{{ include "larder.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "larder.config" -}}
{{ tpl .Values.config . }}
{{- end }}

{{- define "larder.claims" -}}
{{ and (eq .Values.kind "StatefulSet") (ne .Values.cache.volume "") | ternary "claims" "" }}
{{- end }}

{{- /* The same for one larder for the cluster, and for one a node. */}}
{{- define "larder.pod" -}}
metadata:
  labels:
    {{- include "larder.selector" . | nindent 4 }}
  annotations:
    # Another configuration is another pod.
    checksum/config: {{ include "larder.config" . | sha256sum }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  automountServiceAccountToken: false
  # Else the cluster puts variables into its environment that begin with LARDER_.
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ .Values.terminationGracePeriodSeconds }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 65532
    runAsGroup: 65532
    fsGroup: 65532
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile:
      type: RuntimeDefault
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: larder
      image: "{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}"
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args: [serve, --config, /etc/larder/larder.toml]
      ports:
        - name: registry
          containerPort: {{ .Values.port }}
          {{- if eq .Values.kind "DaemonSet" }}
          # For this node alone.
          hostPort: {{ .Values.port }}
          hostIP: 127.0.0.1
          {{- end }}
        - name: admin
          containerPort: {{ .Values.adminPort }}
      # It answers when the cache is open: a disk that is slow to begin with is no reason to start anew.
      startupProbe:
        httpGet: {path: /livez, port: admin}
        periodSeconds: 2
        failureThreshold: 150
      livenessProbe:
        httpGet: {path: /livez, port: admin}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 6
      readinessProbe:
        httpGet: {path: /readyz, port: admin}
        periodSeconds: 5
        timeoutSeconds: 5
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities:
          drop: [ALL]
      resources:
        {{- toYaml .Values.resources | nindent 8 }}
      volumeMounts:
        - name: cache
          mountPath: /data
        - name: config
          mountPath: /etc/larder
          readOnly: true
        {{- if .Values.secret }}
        - name: secret
          mountPath: /run/secrets/larder
          readOnly: true
        {{- end }}
  volumes:
    - name: config
      configMap:
        name: {{ include "larder.name" . }}
    {{- if .Values.secret }}
    - name: secret
      secret:
        secretName: {{ .Values.secret }}
        defaultMode: 0440
    {{- end }}
    {{- if not (include "larder.claims" .) }}
    - name: cache
      {{- if and (eq .Values.kind "DaemonSet") .Values.cache.hostPath }}
      hostPath:
        path: {{ .Values.cache.hostPath }}
        type: Directory
      {{- else }}
      emptyDir: {}
      {{- end }}
    {{- end }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
