//! One call of the plugin.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use serde_json::Value;

/// No call takes so long, however busy the machine: it hangs.
const HANGS: Duration = Duration::from_mins(1);

pub(crate) const CONTAINER: &str = "c0ffee5d8a3b";
pub(crate) const NETNS: &str = "/run/netns/pod";

/// A previous result with white space and escapes that no serialiser writes like this.
pub(crate) const PREV_RESULT: &str = r#"{ "cniVersion": "1.0.0",  "interfaces" : [
  {"name": "cni0", "mac": "22:11:22:33:44:55"}, {"mac":"55:44:33:22:11:11","name":"veth3243", "sandbox": ""},
  {"name":"eth0","mac":"9a:88:77:66:55:44","sandbox":"\/run\/netns\/pod"} ],
  "ips":[{"address":"10.244.1.5/24","gateway":"10.244.1.1","interface":2},
         {"address":"fd00:1::5/64", "interface":2, "version":"6"}],
  "dns":{}, "routes":[{"dst":"0.0.0.0/0"}], "later": 1.50e0, "é": "\u00e9" }"#;

/// The plugin with what a runtime passes to it.
#[derive(Clone)]
pub(crate) struct Call {
    variables: BTreeMap<&'static str, OsString>,
    input: Vec<u8>,
    program: PathBuf,
}

/// What the plugin did.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) status: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Call {
    /// A call for the interface eth0 of the pod shop/web, with an empty standard input.
    pub(crate) fn new(command: &str) -> Self {
        let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=c0ffee5d8a3b;\
                    K8S_POD_UID=6fd2a7c3";
        Self {
            variables: BTreeMap::new(),
            input: Vec::new(),
            program: env!("CARGO_BIN_EXE_towpath-cni").into(),
        }
        .with("CNI_COMMAND", command)
        .with("CNI_CONTAINERID", CONTAINER)
        .with("CNI_NETNS", NETNS)
        .with("CNI_IFNAME", "eth0")
        .with("CNI_ARGS", args)
        .with("CNI_PATH", "/opt/cni/bin")
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl Into<OsString>) -> Self {
        self.variables.insert(name, value.into());
        self
    }

    pub(crate) fn without(mut self, name: &str) -> Self {
        self.variables.remove(name);
        self
    }

    pub(crate) fn input(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = input.into();
        self
    }

    /// Another program, called in the same way.
    pub(crate) fn program(mut self, program: impl Into<PathBuf>) -> Self {
        self.program = program.into();
        self
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.env_clear().envs(&self.variables);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub(crate) fn run(&self) -> Finished {
        let mut child = self.command().spawn().unwrap();
        let pid = child.id();
        let mut stdin = child.stdin.take().unwrap();
        let input = self.input.clone();
        // The plugin need not read everything.
        thread::spawn(move || drop(stdin.write_all(&input)));
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || sender.send(child.wait_with_output().unwrap()));
        let output = receiver.recv_timeout(HANGS).unwrap_or_else(|_| panic!("process {pid} hangs"));
        Finished {
            status: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Finished {
    /// The output of a call that succeeded without anything on standard error.
    #[track_caller]
    pub(crate) fn done(&self) -> &str {
        assert_eq!((self.status, self.stderr.as_str()), (Some(0), ""), "{self:?}");
        &self.stdout
    }

    /// The message and the details of a call that failed with this code.
    #[track_caller]
    pub(crate) fn failed(&self, code: u64) -> String {
        self.failed_in("1.1.0", code)
    }

    /// The same, for a configuration of this version.
    #[track_caller]
    pub(crate) fn failed_in(&self, version: &str, code: u64) -> String {
        assert_eq!(self.status, Some(1), "{self:?}");
        let error: Value = serde_json::from_str(&self.stdout).unwrap_or_else(|_| panic!("{self:?}"));
        assert_eq!((&error["code"], &error["cniVersion"]), (&code.into(), &version.into()), "{self:?}");
        let text = |field: &str| error[field].as_str().unwrap().to_owned();
        assert!(!text("msg").is_empty(), "{self:?}");
        format!("{}; {}", text("msg"), text("details"))
    }
}

/// Runs these calls at the same time: most of them wait.
pub(crate) fn at_once<const N: usize>(calls: [Call; N]) -> [Finished; N] {
    let running = calls.map(|call| thread::spawn(move || call.run()));
    running.map(|call| call.join().unwrap())
}

/// A configuration of this version with these further fields.
pub(crate) fn config(version: &str, socket: &Path, fields: &[(&str, &str)]) -> String {
    let mut text = format!(
        r#"{{"cniVersion":"{version}","name":"pods","type":"towpath-cni","socket":"{}""#,
        socket.display()
    );
    for (name, value) in fields {
        text.extend([",\"", name, "\":", value]);
    }
    text + "}"
}
