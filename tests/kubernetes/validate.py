"""Validates what `ditmesh render k8s` prints, read from stdin, against the published schemas.

    python3 -m venv venv && venv/bin/pip install kubernetes-validate jsonschema pyyaml
    ditmesh render k8s cluster.toml --image x | venv/bin/python tests/kubernetes/validate.py [VERSION]

Kubernetes' own objects, and the pod templates of a LeaderWorkerSet, are checked strictly (no unknown
field) with the schemas in the PyPI package kubernetes-validate, for Kubernetes VERSION (default: its
latest); a LeaderWorkerSet itself with leaderworkerset.schema.json beside this file. Continuous integration
runs it where a package registry can be reached; the test suite needs no network.
"""

import json
import pathlib
import sys

import jsonschema
import kubernetes_validate
import yaml


def main() -> None:
    version = sys.argv[1] if len(sys.argv) > 1 else kubernetes_validate.latest_version()
    here = pathlib.Path(__file__).parent
    schema = json.loads((here / "leaderworkerset.schema.json").read_text())
    count = 0
    for document in yaml.safe_load_all(sys.stdin):
        if document is None:
            continue
        if document["kind"] == "LeaderWorkerSet":
            jsonschema.validate(document, schema)
            template = document["spec"]["leaderWorkerTemplate"]
            for role in ("leaderTemplate", "workerTemplate"):
                pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": role}}
                kubernetes_validate.validate({**pod, "template": template[role]}, version, strict=True)
                count += 1
        else:
            kubernetes_validate.validate(document, version, strict=True)
        count += 1
        print(f"{document['kind']} {document['metadata']['name']}: valid", file=sys.stderr)
    print(f"{count} objects are valid for Kubernetes {version}", file=sys.stderr)


if __name__ == "__main__":
    main()
