//! `towpath ui`: the page for a folder or a cluster.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use clap::Args;
use tokio::net::TcpListener;

use super::{
    Ended, QuestionArgs,
    client::address_and_port,
    explain::{advice::Objects as Known, answer},
    print,
    terminal::Layout,
};
use crate::{
    daemon::stop_signal,
    model::{Cluster, Flow},
    page::{
        Explainer, Objects,
        api::Page,
        cluster::{SharedCluster, Watched},
        folder::{Folder, SharedFolder},
        guard::{Guard, Token},
    },
};

#[derive(Debug, Args)]
pub(super) struct UiArgs {
    #[command(flatten)]
    objects: QuestionArgs,
    /// The address to serve the page on: one of this machine alone. Port 0 takes any free one.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:9587", env = "TOWPATH_UI_LISTEN")]
    #[arg(value_parser = address_and_port)]
    listen: SocketAddr,
    /// Only show: no policy can be changed.
    #[arg(long, env = "TOWPATH_READ_ONLY")]
    read_only: bool,
    /// The namespace of towpath's daemons, for the view of the nodes.
    #[arg(long, value_name = "NAMESPACE", default_value = "towpath", env = "TOWPATH_DAEMON_NAMESPACE")]
    daemon_namespace: String,
}

/// How the page explains a flow: as `towpath explain` does, without Services, which the page does not read.
pub(super) const EXPLAINER: Explainer = Explainer { json: as_json, text: as_text };

fn as_json(cluster: &Cluster, flow: &Flow) -> serde_json::Value {
    serde_json::to_value(answer::json(Known { cluster, services: &[] }, flow)).unwrap_or_default()
}

fn as_text(cluster: &Cluster, flow: &Flow) -> String {
    // The page wraps long lines itself.
    let layout = Layout { width: usize::MAX, color: false };
    answer::text(Known { cluster, services: &[] }, flow, layout)
}

pub(super) fn ui(args: &UiArgs) -> Result<(), Ended> {
    let (file, cluster) = (args.objects.files(), &args.objects.cluster);
    if !args.listen.ip().is_loopback() {
        return Err(Ended::WrongUse(anyhow::anyhow!(
            "{} is not on this machine alone, and the page acts with your rights: listen on 127.0.0.1, and from another \
             machine use a tunnel, as in ssh -L 9587:127.0.0.1:9587",
            args.listen
        )));
    }
    for path in &file {
        check(path)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let served = runtime.block_on(async {
        let objects: Arc<dyn Objects> = if file.is_empty() {
            let watched = Watched::start(
                cluster.access(),
                cluster.context.as_deref(),
                !args.read_only,
                args.daemon_namespace.clone(),
            )
            .await;
            let watched = watched.map_err(|failure| {
                anyhow::anyhow!("{}. For objects of files, name them with -f", failure.error)
            })?;
            Arc::new(SharedCluster(Arc::new(watched)))
        } else {
            Arc::new(SharedFolder(Arc::new(Folder::new(file, !args.read_only))))
        };
        let token = Token::new().context("making a token")?;
        let listener = TcpListener::bind(args.listen).await;
        let listener = listener.with_context(|| {
            format!("listening on {} (another one is free with --listen 127.0.0.1:0)", args.listen)
        })?;
        let address = listener.local_addr()?;
        let text = format!("http://{address}/#token={}\n", token.text());
        let router = Page::new(objects, EXPLAINER).router(Guard { token: Some(token) });
        Ok::<_, anyhow::Error>((listener, router, text))
    });
    let (listener, router, text) = served?;
    // Whatever else there is to say would hide the address.
    print(&text)?;
    runtime.block_on(async {
        tokio::select! {
            result = axum::serve(listener, router) => result,
            signal = stop_signal() => signal.map(drop),
        }
    })?;
    runtime.shutdown_background();
    Ok(())
}

/// Standard input cannot be read again, and what does not exist is a mistake.
fn check(path: &PathBuf) -> Result<(), Ended> {
    if path == Path::new("-") {
        return Err(Ended::WrongUse(anyhow::anyhow!(
            "the page needs files that it can read again, not standard input"
        )));
    }
    std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(())
}
