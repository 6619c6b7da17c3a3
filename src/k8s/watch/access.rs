//! How to reach the API server: its address, whom to trust, and our credentials.

use std::{env, path::PathBuf, sync::Arc, time::Duration};

use jiff::Timestamp;
use kube::{
    Client, Config,
    config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError},
};

use super::exec_plugin::{self, PluginError};

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Which API server to use, and with which credentials. Both are looked up again for each client, so that a renewed
/// token, certificate or kubeconfig is used at the next connection.
#[derive(Clone, Debug)]
pub struct Access {
    kubeconfig: Option<PathBuf>,
    context: Option<String>,
}

/// Why it is not known how to reach an API server.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AccessError {
    /// A kubeconfig that was requested, or the only one there is, cannot be used.
    #[error("{0}")]
    Kubeconfig(Arc<KubeconfigError>),
    /// The service account of this pod cannot be used.
    #[error("the service account of this pod cannot be used: {0}")]
    InCluster(Arc<InClusterError>),
    /// The exec plugin of the kubeconfig gave no credentials.
    #[error("{0}")]
    Plugin(#[from] PluginError),
    /// The client cannot be built from this configuration.
    #[error("{0}")]
    Client(Arc<kube::Error>),
}

/// Credentials are not used any more this long before they expire.
const MARGIN: Duration = Duration::from_mins(1);

/// A client, and what it is for.
#[derive(Clone)]
pub struct Connection {
    /// The client.
    pub client: Client,
    /// The server's address.
    pub server: Arc<str>,
    /// When its credentials expire, if that is known and nothing renews them.
    expires: Option<Timestamp>,
}

impl Connection {
    /// Whether its credentials have expired, or are about to.
    #[must_use]
    pub fn has_expired(&self) -> bool {
        self.expires.is_some_and(|expires| Timestamp::now() + MARGIN >= expires)
    }
}

impl Access {
    /// The API server that `context` of `kubeconfig` names, as kubectl reads them. Without both: in a pod, the API
    /// server of its cluster; elsewhere the one from `$KUBECONFIG` or `~/.kube/config`.
    #[must_use]
    pub fn new(kubeconfig: Option<PathBuf>, context: Option<String>) -> Self {
        Self { kubeconfig, context }
    }

    /// A new client, which shares nothing with the last one.
    ///
    /// # Errors
    /// If the configuration cannot be read, or its exec plugin gives no credentials in time.
    pub async fn client(&self) -> Result<Connection, AccessError> {
        let mut config = self.config().await?;
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        // The watches retry by themselves, and report it.
        config.default_retry = false;
        let server = config.cluster_url.to_string().trim_end_matches('/').into();
        let expires = exec_plugin::resolve(&mut config.auth_info).await?;
        let client = Client::try_from(config).map_err(|error| AccessError::Client(Arc::new(error)))?;
        Ok(Connection { client, server, expires })
    }

    /// The namespace of the context, as kubectl uses it for names without one; `None` if it names none.
    ///
    /// # Errors
    /// If the configuration cannot be read.
    pub async fn default_namespace(&self) -> Result<Option<String>, AccessError> {
        let config = self.config().await?;
        Ok(Some(config.default_namespace).filter(|namespace| !namespace.is_empty()))
    }

    async fn config(&self) -> Result<Config, AccessError> {
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        let of_kubeconfig = |error| AccessError::Kubeconfig(Arc::new(error));
        if let Some(path) = &self.kubeconfig {
            let kubeconfig = Kubeconfig::read_from(path).map_err(of_kubeconfig)?;
            return Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(of_kubeconfig);
        }
        if self.context.is_none() && env::var_os("KUBERNETES_SERVICE_HOST").is_some() {
            return Config::incluster().map_err(|error| AccessError::InCluster(Arc::new(error)));
        }
        Config::from_kubeconfig(&options).await.map_err(of_kubeconfig)
    }
}
