//! The exec plugin of a kubeconfig: a program that prints the credentials.
//!
//! `kube` runs it as well, but waits for it without a limit, inside the async runtime: a plugin that hangs would then
//! stop everything that runs there, and nobody would be told. So it is run here, and `kube` gets what it printed.

use std::{collections::HashMap, io::IsTerminal as _, process::Stdio, time::Duration};

use data_encoding::BASE64;
use jiff::Timestamp;
use kube::config::{AuthInfo, ExecAuthCluster, ExecConfig, ExecInteractiveMode};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::{Child, Command},
    time::{sleep, timeout},
};
use tracing::warn;

/// How long a plugin may take, and one that a person may be answering.
const LIMIT: Duration = Duration::from_secs(30);
const INTERACTIVE_LIMIT: Duration = Duration::from_mins(5);

/// A plugin that takes longer than this is reported while it runs.
const NOTICE: Duration = Duration::from_secs(10);

/// The most that a plugin may print, in bytes.
const MOST_OUTPUT: u64 = 1 << 20;

/// Why a plugin gave no credentials.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the exec plugin {command} of the kubeconfig {problem}")]
pub struct PluginError {
    command: String,
    problem: String,
}

/// What a plugin is told, in the variable `KUBERNETES_EXEC_INFO`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    kind: &'static str,
    api_version: Option<&'a str>,
    spec: Spec<'a>,
}

#[derive(Serialize)]
struct Spec<'a> {
    interactive: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<&'a ExecAuthCluster>,
}

/// What a plugin prints.
#[derive(Deserialize)]
struct Answer {
    status: Option<Credentials>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Credentials {
    expiration_timestamp: Option<Timestamp>,
    token: Option<String>,
    client_certificate_data: Option<String>,
    client_key_data: Option<String>,
}

/// Runs the plugin of `auth`, if it has one that is used, and puts the credentials in its place. Returns until when
/// they are valid, if that is limited.
pub(super) async fn resolve(auth: &mut AuthInfo) -> Result<Option<Timestamp>, PluginError> {
    resolve_within(auth, LIMIT).await
}

async fn resolve_within(auth: &mut AuthInfo, limit: Duration) -> Result<Option<Timestamp>, PluginError> {
    let has_other = auth.token.is_some() || auth.token_file.is_some() || auth.username.is_some();
    let Some(exec) = auth.exec.take().filter(|_| !has_other) else { return Ok(None) };
    let command = exec.command.clone().unwrap_or_default();
    let credentials = run(&exec, limit).await.map_err(|problem| PluginError { command, problem })?;
    if let (Some(certificate), Some(key)) = (credentials.client_certificate_data, credentials.client_key_data)
    {
        auth.client_certificate_data = Some(BASE64.encode(certificate.as_bytes()));
        auth.client_key_data = Some(BASE64.encode(key.as_bytes()).into());
    }
    auth.token = credentials.token.map(Into::into);
    Ok(credentials.expiration_timestamp)
}

/// Runs the plugin; an error continues the sentence "the exec plugin ...".
async fn run(exec: &ExecConfig, limit: Duration) -> Result<Credentials, String> {
    let program = exec.command.as_deref().ok_or("has no command")?;
    let interactive =
        exec.interactive_mode != Some(ExecInteractiveMode::Never) && std::io::stdin().is_terminal();
    let limit = if interactive { limit.max(INTERACTIVE_LIMIT) } else { limit };
    if exec.provide_cluster_info && exec.cluster.is_none() {
        return Err("is to be told about the cluster, which is not known".to_owned());
    }
    let cluster = exec.cluster.as_ref().filter(|_| exec.provide_cluster_info);
    let spec = Spec { interactive, cluster };
    let request = Request { kind: "ExecCredential", api_version: exec.api_version.as_deref(), spec };
    let request = serde_json::to_string(&request).map_err(|error| format!("cannot be told: {error}"))?;
    let mut command = Command::new(program);
    let value = |variable: &HashMap<String, String>, key| variable.get(key).cloned();
    command
        .args(exec.args.iter().flatten())
        .envs(exec.env.iter().flatten().filter_map(|it| Some((value(it, "name")?, value(it, "value")?))))
        .env("KUBERNETES_EXEC_INFO", request)
        .kill_on_drop(true)
        .stdout(Stdio::piped());
    if interactive {
        command.stdin(Stdio::inherit()).stderr(Stdio::inherit());
    } else {
        // In a group of its own, so that what it starts is killed with it. One on a terminal could not read there.
        command.stdin(Stdio::null()).stderr(Stdio::piped()).process_group(0);
    }
    let mut child = command.spawn().map_err(|error| format!("cannot be run: {error}"))?;
    let group = child.id().filter(|_| !interactive);
    let notice = async {
        sleep(NOTICE).await;
        warn!(
            command = program,
            seconds = NOTICE.as_secs(),
            limit_seconds = limit.as_secs(),
            "exec plugin of the kubeconfig has not answered yet"
        );
        std::future::pending::<()>().await;
    };
    let ended = tokio::select! {
        ended = timeout(limit, output(&mut child)) => ended,
        () = notice => return Err("was not waited for".to_owned()),
    };
    let Ok(ended) = ended else {
        if let Some(group) = group.and_then(|group| i32::try_from(group).ok()) {
            // It may have ended just now.
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
        let _ = child.start_kill();
        let _ = timeout(Duration::from_secs(1), child.wait()).await;
        return Err(format!("has not answered for {} s and was killed", limit.as_secs()));
    };
    let (status, stdout, stderr) = ended.map_err(|error| format!("cannot be run: {error}"))?;
    if !status.success() {
        let said = String::from_utf8_lossy(&stderr);
        return Err(format!("failed with {status}: {}", said.trim()));
    }
    let answer: Answer = serde_json::from_slice(&stdout)
        .map_err(|error| format!("printed what is no ExecCredential: {error}"))?;
    answer.status.ok_or_else(|| "printed no status, and so no credentials".to_owned())
}

/// What a child prints, and how it ends.
async fn output(child: &mut Child) -> std::io::Result<(std::process::ExitStatus, Vec<u8>, Vec<u8>)> {
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (stdout, stderr, status) = tokio::try_join!(bounded(stdout), bounded(stderr), child.wait())?;
    Ok((status, stdout, stderr))
}

/// As much as is kept of what comes out of a pipe. The end of it makes a child that writes more fail.
async fn bounded(pipe: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(MOST_OUTPUT).read_to_end(&mut text).await?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// The user of a kubeconfig whose plugin is this script.
    fn auth(script: &str) -> AuthInfo {
        let exec = ExecConfig {
            api_version: Some("client.authentication.k8s.io/v1".to_owned()),
            command: Some("sh".to_owned()),
            args: Some(vec!["-c".to_owned(), script.to_owned()]),
            interactive_mode: Some(ExecInteractiveMode::Never),
            ..ExecConfig::default()
        };
        AuthInfo { exec: Some(exec), ..AuthInfo::default() }
    }

    fn answer(status: &str) -> String {
        format!(
            "echo '{{\"kind\":\"ExecCredential\",\"apiVersion\":\"client.authentication.k8s.io/v1\",\
             \"status\":{status}}}'"
        )
    }

    #[tokio::test]
    async fn plugin_that_hangs_is_killed_with_its_children_and_named() {
        let folder = tempfile::tempdir().unwrap();
        let pids = folder.path().join("pids");
        let mut auth = auth(&format!("sleep 600 & echo $! $$ > {}; sleep 600", pids.display()));
        let error = resolve_within(&mut auth, Duration::from_secs(1)).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "the exec plugin sh of the kubeconfig has not answered for 1 s and was killed"
        );
        for pid in std::fs::read_to_string(pids).unwrap().split_whitespace() {
            let stat = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let has_ended = || stat().is_empty() || stat().contains(") Z ");
            // The signal was sent; on a busy machine the kernel delivers it a little later.
            let until = Instant::now() + Duration::from_secs(10);
            while !has_ended() && Instant::now() < until {
                sleep(Duration::from_millis(10)).await;
            }
            assert!(has_ended(), "still runs: {}", stat());
        }
    }

    #[tokio::test]
    async fn credentials_of_a_plugin_replace_it() {
        let mut token = auth(&answer("{\"token\":\"abc\",\"expirationTimestamp\":\"2030-01-02T03:04:05Z\"}"));
        let until = resolve(&mut token).await.unwrap();
        assert_eq!(until, Some("2030-01-02T03:04:05Z".parse().unwrap()));
        assert!(token.token.is_some() && token.exec.is_none());
        let mut certificate = auth(&answer("{\"clientCertificateData\":\"PEM\",\"clientKeyData\":\"KEY\"}"));
        assert_eq!(resolve(&mut certificate).await.unwrap(), None);
        assert_eq!(certificate.client_certificate_data.as_deref(), Some("UEVN"));
        assert!(certificate.client_key_data.is_some() && certificate.token.is_none());
    }

    #[tokio::test]
    async fn plugin_is_told_what_it_is_asked_for() {
        let script = format!(
            "test \"$KUBERNETES_EXEC_INFO\" = \
             '{{\"kind\":\"ExecCredential\",\"apiVersion\":\"client.authentication.k8s.io/v1\",\
             \"spec\":{{\"interactive\":false}}}}' || {{ echo \"$KUBERNETES_EXEC_INFO\" >&2; exit 1; }}; {}",
            answer("{\"token\":\"abc\"}")
        );
        assert_eq!(resolve(&mut auth(&script)).await.unwrap(), None);
    }

    #[tokio::test]
    async fn plugin_that_fails_or_prints_nothing_of_use_is_reported() {
        for (script, problem) in [
            ("echo 'log in first' >&2; exit 3", "failed with exit status: 3: log in first"),
            ("echo no", "printed what is no ExecCredential"),
            ("echo '{}'", "printed no status"),
            ("exec yes", "failed with signal: 13"),
        ] {
            let error = resolve_within(&mut auth(script), Duration::from_secs(20)).await.unwrap_err();
            assert!(error.to_string().contains(problem), "{script}: {error}");
        }
    }

    #[tokio::test]
    async fn plugin_beside_a_token_is_not_run() {
        let mut auth = AuthInfo { token: Some("known".to_owned().into()), ..auth("exit 1") };
        assert_eq!(resolve(&mut auth).await.unwrap(), None);
    }
}
