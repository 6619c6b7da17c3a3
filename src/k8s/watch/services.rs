//! The Services of a cluster, read once for a question about a flow.

use std::time::Duration;

use k8s_openapi::api::core::v1;
use kube::{Api, api::ListParams};

use super::Access;
use crate::k8s::service::Service;

/// How long to wait for each page.
const PATIENCE: Duration = Duration::from_secs(10);

/// Objects per page.
const PAGE: u32 = 200;

/// Every Service of the cluster.
///
/// # Errors
/// Why there is no answer, such as a missing right to list Services.
pub async fn services(access: &Access) -> Result<Vec<Service>, String> {
    let connection = access.client().await.map_err(|error| error.to_string())?;
    let api: Api<v1::Service> = Api::all(connection.client);
    let mut params = ListParams::default().limit(PAGE);
    let mut services = Vec::new();
    loop {
        let page = tokio::time::timeout(PATIENCE, api.list(&params)).await;
        let page = page.map_err(|_| format!("no answer within {} s", PATIENCE.as_secs()))?;
        let page = page.map_err(|error| error.to_string())?;
        services.extend(page.items.iter().filter_map(Service::new));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok(services),
        }
    }
}
