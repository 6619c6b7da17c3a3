//! The objects of a cluster as they are now, read once: for commands that answer a question, and for a new pod.

use std::time::Duration;

use super::{
    Access, Cause, Connection, Rejection, WatchError,
    follow::{SILENCE, pages},
    inventory::{Inventory, Update},
    kinds::Watched,
    received::Received,
};
use crate::{
    k8s::types,
    model::{Change, Cluster, ObjectKey, Pod},
};

/// How long to wait for the object of one pod.
const PATIENCE: Duration = Duration::from_secs(2);

/// Every namespace, pod and policy of the cluster as the daemon would enforce it, and what is wrong with single ones.
///
/// # Errors
/// If one kind cannot be listed: an answer from part of the objects would be wrong.
pub async fn snapshot(access: &Access) -> Result<(Cluster, Vec<Rejection>), WatchError> {
    let mut cluster = Cluster::new();
    let mut refusals = Vec::new();
    for update in [
        list::<types::Namespace>(access).await?,
        list::<types::Pod>(access).await?,
        list::<types::NetworkPolicy>(access).await?,
    ] {
        for change in update.changes {
            cluster.apply(change);
        }
        refusals.extend(update.rejected.into_iter().flatten());
    }
    Ok((cluster, refusals))
}

async fn list<S: Watched>(access: &Access) -> Result<Update, WatchError> {
    let Connection { client, server, .. } =
        access.client().await.map_err(|error| WatchError::of_access(&error))?;
    let mut inventory = Inventory::<S>::new();
    inventory.begin_list();
    let fields = S::KIND.fields("");
    pages(
        &client,
        &server,
        S::KIND.path(),
        fields,
        SILENCE,
        |page: &mut dyn Iterator<Item = Received<S>>| {
            for received in page {
                inventory.set(&received);
            }
        },
    )
    .await?;
    Ok(inventory.end_list())
}

/// The pod of this name; `None` if there is none, or it cannot be read. For a pod of which the watch has not told yet: a
/// list of one object takes the right to list pods, which the watch has, and no other.
///
/// # Errors
/// If the API server cannot be asked, or does not answer within 2 s.
pub async fn pod(access: &Access, key: &ObjectKey) -> Result<Option<Pod>, WatchError> {
    let list = async {
        let connection = access.client().await.map_err(|error| WatchError::of_access(&error))?;
        let Connection { client, server, .. } = connection;
        let mut inventory = Inventory::<types::Pod>::new();
        inventory.begin_list();
        // Within its namespace, where the API server looks it up by its name.
        let path = format!("/api/v1/namespaces/{}/pods", key.namespace);
        let fields = format!("metadata.name={}", key.name);
        let set = |page: &mut dyn Iterator<Item = Received<types::Pod>>| {
            for received in page {
                inventory.set(&received);
            }
        };
        pages(&client, &server, path, Some(fields), PATIENCE, set).await?;
        Ok(inventory.end_list())
    };
    let silent = |_| {
        let text = format!("the API server did not answer within {} s", PATIENCE.as_secs());
        WatchError { cause: Cause::Silent, text }
    };
    let update = tokio::time::timeout(PATIENCE, list).await.map_err(silent)??;
    Ok(update.changes.into_iter().find_map(|change| match change {
        Change::SetPod(pod) if pod.key == *key => Some(pod),
        _ => None,
    }))
}
