{{/* Labels of every object. The selector is kubeadm's and must never change. */}}
{{- define "kube-proxy.labels" -}}
k8s-app: kube-proxy
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* Not empty where the programs of iptables are needed. */}}
{{- define "kube-proxy.iptables" -}}
{{- if or .Values.iptables.programs (eq .Values.config.mode "iptables") }}yes{{ end }}
{{- end }}

{{- define "kube-proxy.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- if include "kube-proxy.iptables" . }}-iptables{{ end }}
{{- end }}

{{/* Both containers: where the configuration is and which node this is. */}}
{{- define "kube-proxy.command" -}}
- /usr/local/bin/kube-proxy
- --config=/var/lib/kube-proxy/config.conf
- --hostname-override=$(NODE_NAME)
{{- with .Values.extraArgs }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "kube-proxy.env" -}}
- name: NODE_NAME
  valueFrom:
    fieldRef:
      fieldPath: spec.nodeName
{{- end }}

{{- define "kube-proxy.volumeMounts" -}}
- name: kube-proxy
  mountPath: /var/lib/kube-proxy
  readOnly: true
- name: xtables-lock
  mountPath: /run/xtables.lock
{{- end }}

{{/* Port of config.metricsBindAddress, which is IP or IP:port. */}}
{{- define "kube-proxy.metricsPort" -}}
{{- $address := .Values.config.metricsBindAddress | default "" -}}
{{- regexFind "[0-9]+$" (regexFind "[0-9\\]]:[0-9]+$" $address) | default "10249" -}}
{{- end }}
