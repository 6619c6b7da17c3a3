//! The API of a control plane, as its administrator uses it: objects are JSON, and calls return when they are done.

use std::{fs, path::Path, sync::Arc, time::Duration};

use futures::StreamExt as _;
use http::Request;
use kube::{
    Client, Config, Error,
    config::{KubeConfigOptions, Kubeconfig},
    core::Status,
};
use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};
use towpath::lab::Netns;

/// Content types of requests.
const JSON: &str = "application/json";
const MERGE_PATCH: &str = "application/merge-patch+json";

/// How many of many requests are sent at once.
const TOGETHER: usize = 32;

/// The API server's answer to a refused request.
pub(crate) type RejectedRequest = Box<Status>;

/// A client that connects from the control plane's network namespace.
#[derive(Clone)]
pub(crate) struct Api {
    // Its threads were started in the namespace, so every socket that they open is there.
    runtime: Arc<Runtime>,
    client: Client,
}

impl Api {
    /// A client with this kubeconfig.
    pub(crate) fn new(netns: &Netns, kubeconfig: &Path) -> Self {
        let kubeconfig = Kubeconfig::read_from(kubeconfig).unwrap();
        let built = netns.run(|| Builder::new_multi_thread().worker_threads(2).enable_all().build());
        let runtime = Arc::new(built.unwrap().unwrap());
        let connect = async move {
            let options = KubeConfigOptions::default();
            let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
            config.connect_timeout = Some(Duration::from_secs(2));
            config.read_timeout = Some(Duration::from_secs(30));
            config.default_retry = false;
            Client::try_from(config).unwrap()
        };
        let client = on(&runtime, connect);
        Self { runtime, client }
    }

    /// Runs work on the runtime, and waits for it.
    fn wait<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        on(&self.runtime, work)
    }

    /// Whether `/readyz` reports readiness; if not, why.
    pub(crate) fn ready(&self) -> Result<(), String> {
        let client = self.client.clone();
        let response = self.wait(async move {
            let request = Request::get("/readyz?verbose").body(Vec::new()).unwrap();
            client.request_text(request).await
        });
        response.map(drop).map_err(|error| error.to_string())
    }

    /// Sends a request, and repeats it while the API server cannot be reached or is not ready for it.
    pub(crate) fn request(
        &self,
        method: &str,
        path: &str,
        content: &str,
        body: &Value,
    ) -> Result<Value, RejectedRequest> {
        let client = self.client.clone();
        let body = if body.is_null() { Vec::new() } else { serde_json::to_vec(body).unwrap() };
        let (method, path, content) = (method.to_owned(), path.to_owned(), content.to_owned());
        self.wait(async move { send(&client, &method, &path, &content, &body).await })
    }

    /// The object or list at a path, if it exists.
    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        match self.request("GET", path, JSON, &Value::Null) {
            Ok(value) => Some(value),
            Err(status) if status.code == 404 => None,
            Err(status) => panic!("GET {path}: {status:?}"),
        }
    }

    /// The objects of a list.
    pub(crate) fn list(&self, path: &str) -> Vec<Value> {
        self.get(path).and_then(|list| list["items"].as_array().cloned()).unwrap_or_default()
    }

    /// Creates an object in its collection; if it has a status, that is written afterwards too, as its owner would.
    #[track_caller]
    pub(crate) fn create(&self, object: &Value) -> Value {
        self.try_create(object).unwrap_or_else(|status| panic!("{status:?}\n{object:#}"))
    }

    pub(crate) fn try_create(&self, object: &Value) -> Result<Value, RejectedRequest> {
        let (client, object) = (self.client.clone(), object.clone());
        self.wait(async move { create(&client, &object).await })
    }

    /// Creates many objects, a few at a time.
    #[track_caller]
    pub(crate) fn create_all(&self, objects: Vec<Value>) {
        let client = self.client.clone();
        let refused = self.wait(async move {
            let made = futures::stream::iter(objects).map(|object| {
                let client = client.clone();
                async move { create(&client, &object).await.err() }
            });
            made.buffer_unordered(TOGETHER).filter_map(async |refused| refused).collect::<Vec<_>>().await
        });
        assert!(refused.is_empty(), "{} refused, the first: {:?}", refused.len(), refused[0]);
    }

    /// Applies a JSON merge patch.
    #[track_caller]
    pub(crate) fn patch(&self, path: &str, change: &Value) -> Value {
        let patched = self.request("PATCH", path, MERGE_PATCH, change);
        patched.unwrap_or_else(|status| panic!("PATCH {path}: {status:?}"))
    }

    /// Applies many of them, a few at a time.
    #[track_caller]
    pub(crate) fn patch_all(&self, changes: Vec<(String, Value)>) {
        let client = self.client.clone();
        let refused = self.wait(async move {
            let made = futures::stream::iter(changes).map(|(path, change)| {
                let client = client.clone();
                async move { send(&client, "PATCH", &path, MERGE_PATCH, &body(&change)).await.err() }
            });
            made.buffer_unordered(TOGETHER).filter_map(async |refused| refused).collect::<Vec<_>>().await
        });
        assert!(refused.is_empty(), "{} refused, the first: {:?}", refused.len(), refused[0]);
    }

    /// Sets or, with `null`, removes labels.
    #[track_caller]
    pub(crate) fn label(&self, path: &str, labels: &Value) {
        self.patch(path, &json!({ "metadata": { "labels": labels } }));
    }

    /// Deletes an object at once, as a kubelet does with a pod that has ended. It may already be gone.
    #[track_caller]
    pub(crate) fn delete(&self, path: &str) {
        match self.request("DELETE", &format!("{path}?gracePeriodSeconds=0"), JSON, &Value::Null) {
            Ok(_) => {}
            Err(status) if status.code == 404 => {}
            Err(status) => panic!("DELETE {path}: {status:?}"),
        }
    }

    /// Deletes a namespace with its pods and policies, as the namespace controller does.
    #[track_caller]
    pub(crate) fn delete_namespace(&self, name: &str) {
        let path = format!("/api/v1/namespaces/{name}");
        self.delete(&path);
        for kind in ["pods", "secrets", "configmaps", "serviceaccounts"] {
            self.delete(&format!("{path}/{kind}"));
        }
        for (group, kind) in [
            ("networking.k8s.io", "networkpolicies"),
            ("apps", "daemonsets"),
            ("batch", "jobs"),
            ("events.k8s.io", "events"),
        ] {
            self.delete(&format!("/apis/{group}/v1/namespaces/{name}/{kind}"));
        }
        let mut namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
        namespace["spec"] = json!({ "finalizers": [] });
        let finalized = self.request("PUT", &format!("{path}/finalize"), JSON, &namespace);
        if let Err(status) = finalized {
            assert_eq!(status.code, 404, "{status:?}");
        }
    }

    /// A token for a ServiceAccount, `namespace/name`; it is valid as long as `secret` of that namespace exists.
    #[track_caller]
    pub(crate) fn token(&self, account: &str, secret: Option<&str>) -> String {
        let (namespace, name) = account.split_once('/').unwrap();
        let mut spec = json!({ "audiences": [], "expirationSeconds": 3600 });
        if let Some(secret) = secret {
            spec["boundObjectRef"] = json!({ "apiVersion": "v1", "kind": "Secret", "name": secret });
        }
        let request =
            json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec });
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token");
        let made = self.request("POST", &path, JSON, &request).unwrap();
        made["status"]["token"].as_str().unwrap().to_owned()
    }
}

/// Runs work on the runtime, and waits for it on this thread.
fn on<T: Send + 'static>(runtime: &Runtime, work: impl Future<Output = T> + Send + 'static) -> T {
    let (done, result) = std::sync::mpsc::sync_channel(1);
    runtime.spawn(async move { drop(done.send(work.await)) });
    result.recv().expect("the call of the API panicked: see above")
}

/// How often a request is repeated to a server that cannot be reached, 100 milliseconds apart.
const ATTEMPTS: usize = 300;

async fn send(
    client: &Client,
    method: &str,
    path: &str,
    content: &str,
    body: &[u8],
) -> Result<Value, RejectedRequest> {
    let mut last = String::new();
    for _ in 0..ATTEMPTS {
        let request = Request::builder().method(method).uri(path).header("Content-Type", content);
        match client.request::<Value>(request.body(body.to_vec()).unwrap()).await {
            Ok(value) => return Ok(value),
            // Too early, too busy, or the storage is unavailable.
            Err(Error::Api(status)) if status.code == 429 || status.code >= 500 => last = status.to_string(),
            Err(Error::Api(status)) => return Err(status),
            Err(error) => last = error.to_string(),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{method} {path}: {last}")
}

async fn create(client: &Client, object: &Value) -> Result<Value, RejectedRequest> {
    let collection = collection(object);
    // Managed fields are part of an object's size, and so are the names of their managers.
    let posted = format!("{collection}?fieldManager=kube-controller-manager");
    let made = match send(client, "POST", &posted, JSON, &body(object)).await {
        // Repeated after an answer was lost.
        Err(status) if status.code == 409 && status.reason == "AlreadyExists" => Ok(Value::Null),
        other => other,
    }?;
    let Some(status) = object.get("status") else { return Ok(made) };
    let name = object["metadata"]["name"].as_str().unwrap();
    let change = body(&json!({ "status": status }));
    let written = format!("{collection}/{name}/status?fieldManager=kubelet");
    send(client, "PATCH", &written, MERGE_PATCH, &change).await
}

fn body(object: &Value) -> Vec<u8> {
    serde_json::to_vec(object).unwrap()
}

/// The path of an object's collection.
fn collection(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (version, kind) = (text(&object["apiVersion"]), text(&object["kind"]).to_lowercase());
    let plural = match kind.strip_suffix('y') {
        Some(stem) => format!("{stem}ies"),
        None => format!("{kind}s"),
    };
    let root = if version.contains('/') { format!("/apis/{version}") } else { format!("/api/{version}") };
    match object["metadata"]["namespace"].as_str() {
        Some(namespace) => format!("{root}/namespaces/{namespace}/{plural}"),
        None => format!("{root}/{plural}"),
    }
}

/// A kubeconfig for a server, with a client certificate or a file with a token.
pub(crate) fn write_kubeconfig(path: &Path, server: &str, pki: &Path, user: &Value) {
    let text = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{ "name": "test", "cluster": {
            "server": server, "certificate-authority": pki.join("ca.crt"),
        } }],
        "users": [{ "name": "test", "user": user }],
        "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
    });
    fs::write(path, serde_json::to_string_pretty(&text).unwrap()).unwrap();
}
