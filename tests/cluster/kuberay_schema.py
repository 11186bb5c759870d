"""JSON schemas of RayCluster and RayJob as the Kubernetes API server accepts them, for offline checks.

Written from the field names, types, enumerations and required fields of the custom resource definitions of KubeRay
(ray.io/v1, the definitions themselves are Apache-2.0) and of the Kubernetes pod API. Unknown fields are refused, as by
`kubectl apply`, which asks for strict field validation. Optional fields that no recipe here uses are left out, so the
schemas can refuse a correct new recipe. In that case check the definition and add the field here.
"""

from typing import Any

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
BOOLEAN: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
STRING_MAP: Schema = {"type": "object", "additionalProperties": STRING}
# The pattern of every quantity in the Kubernetes API ("500m", "24Gi", 4).
QUANTITY: Schema = {
    "anyOf": [
        {"type": "integer"},
        {"type": "string", "pattern": r"^[+-]?(\d+(\.\d*)?|\.\d+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?\d+(\.\d*)?)?$"},
    ]
}


def record(required: str = "", **properties: Schema) -> Schema:
    """Schema of an object with these properties and no others; `required` lists the required ones, separated by spaces."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


def items(of: Schema) -> Schema:
    return {"type": "array", "items": of}


def choice(*values: str) -> Schema:
    return {"type": "string", "enum": list(values)}


KEY_REFERENCE = record("key", key=STRING, name=STRING, optional=BOOLEAN)
ENVIRONMENT = items(
    record(
        "name",
        name=STRING,
        value=STRING,
        valueFrom=record(
            secretKeyRef=KEY_REFERENCE,
            configMapKeyRef=KEY_REFERENCE,
            fieldRef=record("fieldPath", apiVersion=STRING, fieldPath=STRING),
        ),
    )
)
QUANTITIES: Schema = {"type": "object", "additionalProperties": QUANTITY}
RESOURCES = record(requests=QUANTITIES, limits=QUANTITIES, claims=items(record("name", name=STRING, request=STRING)))
HANDLER = record(exec=record(command=items(STRING)), sleep=record("seconds", seconds=COUNT))
CONTAINER = record(
    "name",
    name=STRING,
    image=STRING,
    imagePullPolicy=choice("Always", "IfNotPresent", "Never"),
    command=items(STRING),
    args=items(STRING),
    workingDir=STRING,
    env=ENVIRONMENT,
    envFrom=items(record(prefix=STRING, secretRef=record(name=STRING, optional=BOOLEAN), configMapRef=record(name=STRING))),
    ports=items(record("containerPort", containerPort=COUNT, name=STRING, protocol=choice("TCP", "UDP", "SCTP"))),
    resources=RESOURCES,
    lifecycle=record(preStop=HANDLER, postStart=HANDLER),
    volumeMounts=items(record("name mountPath", name=STRING, mountPath=STRING, readOnly=BOOLEAN, subPath=STRING)),
    securityContext=record(
        allowPrivilegeEscalation=BOOLEAN,
        privileged=BOOLEAN,
        readOnlyRootFilesystem=BOOLEAN,
        runAsNonRoot=BOOLEAN,
        runAsUser=COUNT,
        runAsGroup=COUNT,
        capabilities=record(add=items(STRING), drop=items(STRING)),
    ),
)
TOLERATION = record(
    key=STRING,
    operator=choice("Exists", "Equal"),
    value=STRING,
    effect=choice("NoSchedule", "PreferNoSchedule", "NoExecute"),
    tolerationSeconds=COUNT,
)
POD_TEMPLATE = record(
    metadata=record(labels=STRING_MAP, annotations=STRING_MAP, name=STRING),
    spec=record(
        "containers",
        containers={**items(CONTAINER), "minItems": 1},
        initContainers=items(CONTAINER),
        serviceAccountName=STRING,
        nodeSelector=STRING_MAP,
        tolerations=items(TOLERATION),
        terminationGracePeriodSeconds=COUNT,
        restartPolicy=choice("Always", "OnFailure", "Never"),
        priorityClassName=STRING,
        imagePullSecrets=items(record(name=STRING)),
        securityContext=record(runAsNonRoot=BOOLEAN, runAsUser=COUNT, runAsGroup=COUNT, fsGroup=COUNT),
    ),
)
CLUSTER_SPEC = record(
    "headGroupSpec",
    rayVersion=STRING,
    suspend=BOOLEAN,
    managedBy=choice("ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue"),
    authOptions=record(mode=choice("disabled", "token"), enableK8sTokenAuth=BOOLEAN, secretName=STRING),
    enableInTreeAutoscaling=BOOLEAN,
    autoscalerOptions=record(
        version=choice("v1", "v2"),
        upscalingMode=choice("Default", "Aggressive", "Conservative"),
        idleTimeoutSeconds=COUNT,
        resources=RESOURCES,
        image=STRING,
        imagePullPolicy=STRING,
        env=ENVIRONMENT,
    ),
    headServiceAnnotations=STRING_MAP,
    headGroupSpec=record(
        "template",
        serviceType=choice("ClusterIP", "NodePort", "LoadBalancer", "ExternalName"),
        enableIngress=BOOLEAN,
        rayStartParams=STRING_MAP,
        template=POD_TEMPLATE,
    ),
    workerGroupSpecs=items(
        record(
            "groupName minReplicas maxReplicas template",
            groupName=STRING,
            suspend=BOOLEAN,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            numOfHosts=COUNT,
            idleTimeoutSeconds=COUNT,
            rayStartParams=STRING_MAP,
            scaleStrategy=record(workersToDelete=items(STRING)),
            template=POD_TEMPLATE,
        )
    ),
)
JOB_SPEC = record(
    "",
    entrypoint=STRING,
    runtimeEnvYAML=STRING,
    jobId=STRING,
    metadata=STRING_MAP,
    submissionMode=choice("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    submitterPodTemplate=POD_TEMPLATE,
    submitterConfig=record(backoffLimit=COUNT),
    entrypointNumCpus={"type": "number"},
    entrypointNumGpus={"type": "number"},
    entrypointResources=STRING,
    backoffLimit=COUNT,
    activeDeadlineSeconds=COUNT,
    shutdownAfterJobFinishes=BOOLEAN,
    ttlSecondsAfterFinished=COUNT,
    suspend=BOOLEAN,
    clusterSelector=STRING_MAP,
    rayClusterSpec=CLUSTER_SPEC,
)
METADATA = record("name", name=STRING, namespace=STRING, labels=STRING_MAP, annotations=STRING_MAP)


def resource(kind: str, api_version: str, **parts: Schema) -> Schema:
    """Schema of one kind: API version and name of the kind, metadata, and further parts."""
    return record(
        " ".join(("apiVersion", "kind", "metadata", *parts)),
        apiVersion={"const": api_version},
        kind={"const": kind},
        metadata=METADATA,
        **parts,
    )


SCHEMAS: dict[str, Schema] = {
    "RayCluster": resource("RayCluster", "ray.io/v1", spec=CLUSTER_SPEC),
    "RayJob": resource("RayJob", "ray.io/v1", spec=JOB_SPEC),
    "ServiceAccount": resource("ServiceAccount", "v1"),
}
