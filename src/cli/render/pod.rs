//! The pod of one node's agent.
//!
//! Owns paths in pods, mounts, probes and what a pod may do. Invariants: secrets are mounted files;
//! nothing listens but the agent's own, authenticated, ports.

use serde_json::{Map, Value, json};

use super::Need;
use crate::cli::args::KubernetesArgs;

/// Where the manifest lies.
const CONFIG_DIR: &str = "/etc/ditmesh";
/// Where certificates and keys lie.
pub(super) const CERTS_DIR: &str = "/var/run/secrets/ditmesh";
/// Where the agent keeps what lives as long as its pod.
pub(super) const STATE_DIR: &str = "/var/lib/ditmesh";
/// The manifest.
const MANIFEST: &str = "/etc/ditmesh/cluster.toml";
/// Anybody but root, as images without a shell have it.
const USER: u32 = 65532;
/// Seconds for a pod to end by itself: the agent's own time for its workers, and some.
const GRACE_SECONDS: u32 = 30;

/// What pods of one kind have in common.
pub(super) struct Pods<'a> {
    pub(super) args: &'a KubernetesArgs,
    pub(super) name: &'a str,
    pub(super) port: u16,
    /// Frames may ride on shared memory.
    pub(super) shared_memory: bool,
    /// Seconds until the mesh may take to come.
    pub(super) start_seconds: u32,
}

impl Pods<'_> {
    /// A pod template for nodes that need `need`.
    pub(super) fn template(&self, need: Need) -> Value {
        json!({
            "metadata": { "labels": self.labels() },
            "spec": {
                "containers": [self.container(need)],
                "terminationGracePeriodSeconds": GRACE_SECONDS,
                "automountServiceAccountToken": false,
                "securityContext": {
                    "runAsNonRoot": true,
                    "runAsUser": USER,
                    "runAsGroup": USER,
                    "fsGroup": USER,
                    "seccompProfile": { "type": "RuntimeDefault" },
                },
                "volumes": self.volumes(),
            },
        })
    }

    /// What its objects are found by.
    pub(super) fn labels(&self) -> Value {
        json!({ "app.kubernetes.io/name": "ditmesh", "app.kubernetes.io/instance": self.name })
    }

    fn container(&self, need: Need) -> Value {
        let mut args = vec!["agent", "--cluster", MANIFEST, "--address", "$(POD_IP)"];
        let field = |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
        let mut environment = vec![
            field("POD_IP", "status.podIP"),
            json!({ "name": "DITMESH_CACHE_DIR", "value": format!("{STATE_DIR}/cache") }),
            json!({ "name": "DITMESH_LOG", "value": "info" }),
        ];
        if self.args.statefulset {
            // A LeaderWorkerSet says it by itself.
            environment.push(field("NODE_RANK", "metadata.labels['apps.kubernetes.io/pod-index']"));
            args.extend(["--node-rank", "$(NODE_RANK)"]);
        }
        json!({
            "name": "agent",
            "image": self.args.image,
            "command": [self.args.program],
            "args": args,
            "env": environment,
            "ports": [{ "name": "control", "containerPort": self.port, "protocol": "UDP" }],
            "resources": resources(need),
            "startupProbe": self.probe(false, 2, self.start_seconds.div_ceil(2)),
            "readinessProbe": self.probe(true, 5, 2),
            "livenessProbe": self.probe(false, 10, 3),
            "securityContext": {
                "allowPrivilegeEscalation": false,
                "capabilities": { "drop": ["ALL"] },
            },
            "volumeMounts": self.mounts(),
        })
    }

    /// The agent listens to UDP with mutual TLS only, so a probe is a command beside it.
    fn probe(&self, ready: bool, period: u32, failures: u32) -> Value {
        let mut command = vec![self.args.program.as_str(), "probe", "--cluster", MANIFEST];
        if ready {
            command.push("--ready");
        }
        json!({
            "exec": { "command": command },
            "periodSeconds": period,
            "timeoutSeconds": 5,
            "failureThreshold": failures,
        })
    }

    fn volumes(&self) -> Value {
        let certs = self.certs_secret();
        let mut volumes = vec![
            json!({ "name": "manifest", "configMap": { "name": self.name } }),
            json!({ "name": "certs", "secret": { "secretName": certs, "defaultMode": 0o440 } }),
            json!({ "name": "state", "emptyDir": {} }),
        ];
        if let Some(claim) = &self.args.models_claim {
            let claim = json!({ "claimName": claim, "readOnly": true });
            volumes.push(json!({ "name": "models", "persistentVolumeClaim": claim }));
        }
        if self.shared_memory {
            volumes.push(json!({ "name": "shm", "emptyDir": { "medium": "Memory" } }));
        }
        Value::Array(volumes)
    }

    fn mounts(&self) -> Value {
        let mut mounts = vec![
            json!({ "name": "manifest", "mountPath": CONFIG_DIR, "readOnly": true }),
            json!({ "name": "certs", "mountPath": CERTS_DIR, "readOnly": true }),
            json!({ "name": "state", "mountPath": STATE_DIR }),
        ];
        if let Some(path) = &self.args.models_path {
            mounts.push(json!({ "name": "models", "mountPath": path, "readOnly": true }));
        }
        if self.shared_memory {
            mounts.push(json!({ "name": "shm", "mountPath": "/dev/shm" }));
        }
        Value::Array(mounts)
    }

    /// Name of the Secret with certificates and keys.
    pub(super) fn certs_secret(&self) -> String {
        self.args.certs_secret.clone().unwrap_or_else(|| format!("{}-certs", self.name))
    }
}

fn resources(need: Need) -> Value {
    let (mut requests, mut limits) = (Map::new(), Map::new());
    requests.insert("cpu".into(), need.cpus.max(1).to_string().into());
    if let Some(bytes) = need.memory_bytes {
        requests.insert("memory".into(), bytes.to_string().into());
    }
    if need.gpus > 0 {
        limits.insert("nvidia.com/gpu".into(), need.gpus.to_string().into());
        requests.insert("nvidia.com/gpu".into(), need.gpus.to_string().into());
    }
    if limits.is_empty() {
        return json!({ "requests": requests });
    }
    json!({ "requests": requests, "limits": limits })
}
