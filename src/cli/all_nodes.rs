//! Asks the daemons of all nodes, through the API server.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader},
    time::timeout,
};

use crate::k8s::{
    daemons::{DaemonPod, Daemons},
    watch::Access,
};

/// How long a daemon may take to answer, and then to send each line.
const PATIENCE: Duration = Duration::from_secs(15);

/// The largest answer of one daemon, in bytes.
const MOST: u64 = 64 << 20;

/// The longest line of an answer, in bytes.
const LONGEST_LINE: u64 = 1 << 20;

/// Whether to ask the daemons of all nodes, and how.
#[derive(Debug, Args)]
pub(super) struct AllNodesArgs {
    /// Ask the daemons of all nodes, through the API server. Needs the rights to list pods and to get and create
    /// pods/portforward in their namespace.
    #[arg(long, env = "TOWPATH_ALL_NODES")]
    all_nodes: bool,
    /// The kubeconfig for the API server; with it all nodes are asked. Default: $KUBECONFIG or ~/.kube/config.
    #[arg(long, value_name = "FILE", env = "TOWPATH_KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig, if not its current one; with it all nodes are asked.
    #[arg(long, value_name = "NAME", env = "TOWPATH_CONTEXT")]
    context: Option<String>,
    /// The namespace of the daemons.
    #[arg(long, value_name = "NAMESPACE", default_value = "towpath", env = "TOWPATH_DAEMON_NAMESPACE")]
    daemon_namespace: String,
}

impl AllNodesArgs {
    /// Whether all nodes are asked.
    pub(super) fn wanted(&self) -> bool {
        self.all_nodes || self.kubeconfig.is_some() || self.context.is_some()
    }

    /// The daemons, and those that run.
    pub(super) async fn daemons(&self) -> anyhow::Result<(Daemons, Vec<DaemonPod>)> {
        let access = Access::new(self.kubeconfig.clone(), self.context.clone());
        let daemons = Daemons::new(&access, &self.daemon_namespace).await?;
        let pods = timeout(PATIENCE, daemons.list()).await.context("the API server does not answer")??;
        ensure!(!pods.is_empty(), "no daemon runs in the namespace {}", self.daemon_namespace);
        Ok((daemons, pods))
    }
}

/// The body of a daemon's answer to a request for `path`.
pub(super) async fn get(daemons: &Daemons, pod: &DaemonPod, path: &str) -> anyhow::Result<String> {
    let asking = async {
        let mut forwarded = daemons.connect(pod).await?;
        whole(&mut forwarded.stream, path).await
    };
    timeout(PATIENCE, asking).await.context("no answer")?
}

/// Passes on the lines of a daemon's answer as they come, until `each` returns false.
pub(super) async fn lines(
    daemons: &Daemons,
    pod: &DaemonPod,
    path: &str,
    each: impl FnMut(&str) -> bool,
) -> anyhow::Result<()> {
    let forwarded = timeout(PATIENCE, daemons.connect(pod)).await.context("no answer")??;
    let mut forwarded = forwarded;
    each_line(&mut forwarded.stream, path, each).await
}

async fn request(stream: &mut (impl AsyncWrite + Unpin), path: &str) -> std::io::Result<()> {
    // HTTP/1.0, so that the answer is not in chunks and ends with the connection.
    // The daemon answers to an address, not to a name: kubelet connects to its loopback.
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n").as_bytes()).await?;
    stream.flush().await
}

async fn whole(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), path: &str) -> anyhow::Result<String> {
    request(stream, path).await?;
    let mut answer = Vec::new();
    stream.take(MOST).read_to_end(&mut answer).await?;
    let text = String::from_utf8(answer).context("the answer is no text")?;
    let (head, body) = text.split_once("\r\n\r\n").context("the daemon does not speak HTTP")?;
    match head.split(' ').nth(1) {
        Some("200") => Ok(body.to_owned()),
        status => bail!("the daemon answered {}: {}", status.unwrap_or_default(), body.trim()),
    }
}

async fn each_line(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    path: &str,
    mut each: impl FnMut(&str) -> bool,
) -> anyhow::Result<()> {
    request(stream, path).await?;
    let mut reader = BufReader::new(stream);
    let (mut is_first, mut is_body) = (true, false);
    loop {
        let mut line = Vec::new();
        let mut limited = (&mut reader).take(LONGEST_LINE);
        let read =
            timeout(PATIENCE, limited.read_until(b'\n', &mut line)).await.context("it is silent")??;
        if read == 0 {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end();
        if std::mem::take(&mut is_first) {
            let status = text.split(' ').nth(1).unwrap_or_default();
            ensure!(status == "200", "the daemon answered {status}");
        } else if !is_body {
            is_body = text.is_empty();
        } else if !text.is_empty() && !each(text) {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    /// Runs `client` with a daemon that answers with these bytes; returns what it asked as well.
    async fn with_daemon<T>(
        answer: &'static str,
        client: impl AsyncFnOnce(&mut tokio::io::DuplexStream) -> T,
    ) -> (String, T) {
        let (mut near, mut far) = duplex(1 << 16);
        far.write_all(answer.as_bytes()).await.unwrap();
        let result = client(&mut near).await;
        drop(near);
        let mut asked = String::new();
        far.read_to_string(&mut asked).await.unwrap();
        (asked, result)
    }

    #[tokio::test]
    async fn lines_are_passed_on_without_the_head_and_empty_ones() {
        let answer = "HTTP/1.0 200 OK\r\ncontent-type: x\r\n\r\n{\"a\":1}\n\n{\"a\":2}\n{\"a\":3}\n";
        let mut seen = Vec::new();
        let (asked, result) = with_daemon(answer, async |stream| {
            each_line(stream, "/drops?follow=true", |line| {
                seen.push(line.to_owned());
                seen.len() < 2
            })
            .await
        })
        .await;
        result.unwrap();
        assert_eq!(seen, ["{\"a\":1}", "{\"a\":2}"]);
        assert!(asked.starts_with("GET /drops?follow=true HTTP/1.0\r\nHost: 127.0.0.1\r\n"), "{asked}");
    }

    #[tokio::test]
    async fn refusal_of_a_daemon_is_an_error_with_its_text() {
        let answer = "HTTP/1.0 503 Service Unavailable\r\n\r\ntoo many clients\n";
        let (_, lines) = with_daemon(answer, async |stream| each_line(stream, "/", |_| true).await).await;
        assert!(lines.unwrap_err().to_string().contains("503"));
    }
}
