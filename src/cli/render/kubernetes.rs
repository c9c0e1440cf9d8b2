//! Objects for Kubernetes: the manifest, a name for the coordinator, and a LeaderWorkerSet or a
//! StatefulSet of agents, one pod for each node.
//!
//! The Secret is not among them: its keys come from files, by the command that the text begins
//! with.

use ditmesh::{Manifest, manifest};
use serde_json::{Value, json};

use super::pod::Pods;
use super::{Need, control_port, template};
use crate::cli::args::KubernetesArgs;
use crate::cli::failure::Failure;

/// The objects as YAML documents.
pub(super) fn render(args: &KubernetesArgs) -> Result<String, Failure> {
    let path = args.manifest.path();
    let manifest = manifest::parse::load(path)?;
    let source = std::fs::read_to_string(path)
        .map_err(|error| Failure::failed(format!("cannot read {}: {error}", path.display())))?;
    check(&manifest, &source, args)?;
    let name = args.name.as_deref().unwrap_or(&manifest.cluster.name);
    let port = control_port(&manifest, args.control_port);
    let pods = Pods {
        args,
        name,
        port,
        shared_memory: manifest.transport.ucx().is_some(),
        start_seconds: manifest.launcher.ready_deadline_ms.div_ceil(1000),
    };
    let service = format!("{name}-coordinator");
    let text = template::in_pods(&source, &manifest, &service, port)?;
    let mut objects = vec![
        object("v1", "ConfigMap", name, &pods, json!({ "data": { "cluster.toml": text } })),
        coordinator_service(&service, &pods),
    ];
    if args.statefulset {
        objects.push(pods_service(&pods));
        objects.push(stateful_set(&manifest, &pods));
    } else {
        objects.push(leader_worker_set(&manifest, &pods));
    }
    let mut yaml = heading(&manifest, &pods);
    for object in objects {
        yaml.push_str("---\n");
        yaml.push_str(&serde_yaml_ng::to_string(&object).map_err(Failure::failed)?);
    }
    Ok(yaml)
}

/// What pods cannot have as it is.
fn check(manifest: &Manifest, source: &str, args: &KubernetesArgs) -> Result<(), Failure> {
    let first = manifest.nodes.first().map_or("", |node| &node.name);
    if manifest.coordinator_node() != first {
        return Err(Failure::usage(format!(
            "the coordinator is on node \"{}\", and the first pod is node \"{first}\"; make the \
             coordinator's node the first one",
            manifest.coordinator_node()
        )));
    }
    // As it is written: the loaded one has paths of this machine.
    let written = manifest::parse::from_str(source, &args.manifest.path().display().to_string())?;
    let below = args.models_path.as_deref().map(std::path::Path::new);
    for model in written.models.iter().filter(|model| model.path.as_os_str() != "built-in") {
        let (name, path) = (&model.name, model.path.display());
        if !model.path.is_absolute() {
            return Err(Failure::usage(format!(
                "the path {path} of model \"{name}\" is relative to this machine's folder; write \
                 the absolute path that it has in pods"
            )));
        }
        if let Some(below) = below.filter(|below| !model.path.starts_with(below)) {
            return Err(Failure::usage(format!(
                "model \"{name}\" lies in {path}, and the claim is mounted at {}",
                below.display()
            )));
        }
    }
    Ok(())
}

fn heading(manifest: &Manifest, pods: &Pods<'_>) -> String {
    let mut files = vec!["ca.pem".to_owned()];
    for node in &manifest.nodes {
        files.push(format!("node-{}.pem", node.name));
        files.push(format!("node-{}.key.pem", node.name));
    }
    files.extend(["client-client.pem".to_owned(), "client-client.key.pem".to_owned()]);
    let files: Vec<String> = files.iter().map(|file| format!("--from-file={file}")).collect();
    let namespace = pods.args.namespace.as_ref().map(|name| format!(" --namespace {name}"));
    let (secret, namespace) = (pods.certs_secret(), namespace.unwrap_or_default());
    format!(
        "# Made by `ditmesh render k8s`. Before `kubectl apply -f`, in the folder that `ditmesh certs` \
         prints\n# (ca.key.pem stays where it is):\n#   kubectl create secret generic {secret}{namespace} \
         {}\n",
        files.join(" ")
    )
}

/// An object of this cluster: `rest` with its kind and its name.
fn object(api: &str, kind: &str, name: &str, pods: &Pods<'_>, rest: Value) -> Value {
    let mut object = json!({ "apiVersion": api, "kind": kind });
    object["metadata"] = json!({ "name": name, "labels": pods.labels() });
    if let Some(namespace) = &pods.args.namespace {
        object["metadata"]["namespace"] = namespace.as_str().into();
    }
    if let (Some(object), Value::Object(rest)) = (object.as_object_mut(), rest) {
        object.extend(rest);
    }
    object
}

/// A name for the pod of the coordinator, there before the pod is ready: the others wait for it.
fn coordinator_service(name: &str, pods: &Pods<'_>) -> Value {
    let mut selector = pods.labels();
    let index = if pods.args.statefulset {
        "apps.kubernetes.io/pod-index"
    } else {
        "leaderworkerset.sigs.k8s.io/worker-index"
    };
    selector[index] = "0".into();
    headless(name, pods, &selector)
}

/// What a StatefulSet's pods are named under; a LeaderWorkerSet makes its own.
fn pods_service(pods: &Pods<'_>) -> Value {
    headless(pods.name, pods, &pods.labels())
}

fn headless(name: &str, pods: &Pods<'_>, selector: &Value) -> Value {
    let spec = json!({
        "clusterIP": "None",
        "publishNotReadyAddresses": true,
        "selector": selector,
        "ports": [
            { "name": "control", "port": pods.port, "targetPort": "control", "protocol": "UDP" },
        ],
    });
    object("v1", "Service", name, pods, json!({ "spec": spec }))
}

/// All pods at once: the mesh needs all of them. A pod that ends comes back by itself and joins
/// again, so that the others need not end with it.
fn leader_worker_set(manifest: &Manifest, pods: &Pods<'_>) -> Value {
    let (leader, workers) = manifest.nodes.split_at(1.min(manifest.nodes.len()));
    let workers = if workers.is_empty() { leader } else { workers };
    let spec = json!({
        "replicas": 1,
        "startupPolicy": "LeaderCreated",
        "networkConfig": { "subdomainPolicy": "Shared" },
        "leaderWorkerTemplate": {
            "size": manifest.nodes.len(),
            "restartPolicy": "None",
            "leaderTemplate": pods.template(Need::most(leader)),
            "workerTemplate": pods.template(Need::most(workers)),
        },
    });
    let api = "leaderworkerset.x-k8s.io/v1";
    object(api, "LeaderWorkerSet", pods.name, pods, json!({ "spec": spec }))
}

fn stateful_set(manifest: &Manifest, pods: &Pods<'_>) -> Value {
    let spec = json!({
        "replicas": manifest.nodes.len(),
        "serviceName": pods.name,
        "podManagementPolicy": "Parallel",
        "selector": { "matchLabels": pods.labels() },
        "template": pods.template(Need::most(&manifest.nodes)),
    });
    object("apps/v1", "StatefulSet", pods.name, pods, json!({ "spec": spec }))
}
