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

{{/* Not empty where programs at sockets are used, or are to be taken away. */}}
{{- define "kube-proxy.ebpf" -}}
{{- if or .Values.ebpf.access (eq .Values.config.mode "ebpf") }}yes{{ end }}
{{- end }}

{{/* Not empty where sockets of pods are to be ended, which takes their network namespaces. */}}
{{- define "kube-proxy.ebpf-udp" -}}
{{- if and (eq .Values.config.mode "ebpf") (dig "ebpf" "udp" false .Values.config) }}yes{{ end }}
{{- end }}

{{/* The configuration. The host's cgroups are not where the container has its own. */}}
{{- define "kube-proxy.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- if include "kube-proxy.ebpf" . -}}
{{- $ebpf := merge (dict) (default dict $config.ebpf) (dict "cgroupRoot" "/run/kube-proxy/cgroup") -}}
{{- $_ := set $config "ebpf" $ebpf -}}
{{- end -}}
{{- toYaml $config -}}
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
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "kube-proxy.volumeMounts" -}}
- name: kube-proxy
  mountPath: /var/lib/kube-proxy
  readOnly: true
- name: xtables-lock
  mountPath: /run/xtables.lock
{{- if include "kube-proxy.ebpf" . }}
- name: bpffs
  mountPath: /sys/fs/bpf
- name: cgroup
  mountPath: /run/kube-proxy/cgroup
  readOnly: true
{{- end }}
{{- if include "kube-proxy.ebpf-udp" . }}
- name: netns
  mountPath: /run/netns
  readOnly: true
  mountPropagation: HostToContainer
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Port of config.metricsBindAddress, which is IP or IP:port. */}}
{{- define "kube-proxy.metricsPort" -}}
{{- $address := .Values.config.metricsBindAddress | default "" -}}
{{- regexFind "[0-9]+$" (regexFind "[0-9\\]]:[0-9]+$" $address) | default "10249" -}}
{{- end }}
