use super::*;

fn gate(folder: &tempfile::TempDir, inputs: Sender<Input>) -> Gate {
    Gate {
        inputs,
        metrics: Arc::new(Metrics::new().unwrap()),
        status: Arc::new(Status::starting("the objects")),
        records: Records::open(folder.path().to_owned()).unwrap(),
        objects: ObjectReader::Files,
        traffic: TrafficCleaner::start(Arc::new(Metrics::new().unwrap())).unwrap(),
        entries: Mutex::default(),
    }
}

/// Reports a pod; `when_told` is what the agent does then, before it ends.
fn add(when_told: impl FnOnce(&Gate) + Send) -> Option<Response> {
    let folder = tempfile::tempdir().unwrap();
    let (inputs, received) = mpsc::channel();
    let gate = gate(&folder, inputs);
    let pod = protocol::PodRef { namespace: "shop".to_owned(), name: "web".to_owned(), uid: None };
    let attachment = protocol::Attachment {
        id: protocol::AttachmentId::new("c0ffee", "eth0").unwrap(),
        network: "cbr0".to_owned(),
        pod,
        netns: String::new(),
        host_interfaces: Vec::new(),
        mac: None,
        addresses: Vec::new(),
    };
    thread::scope(|scope| {
        let gate = &gate;
        scope.spawn(move || {
            let attached = received.recv().unwrap();
            when_told(gate);
            drop(attached);
        });
        gate.answer(Request::Add(attachment))
    })
}

/// What is removed for a new pod with an address, in this order. The address is closed, and the first removal
/// succeeds, if these say so; `meanwhile` happens before its rules are written.
fn forgotten(is_closed: bool, succeeds: bool, meanwhile: impl FnOnce(&Gate) + Send) -> Vec<Traffic> {
    let folder = tempfile::tempdir().unwrap();
    let (inputs, received) = mpsc::channel();
    let (sender, removed) = mpsc::channel();
    let fake = TrafficCleaner::fake(move |traffic| {
        sender.send(traffic).unwrap();
        succeeds
    });
    let gate = Gate { traffic: fake, ..gate(&folder, inputs) };
    let attachment = protocol::Attachment {
        id: protocol::AttachmentId::new("c0ffee", "eth0").unwrap(),
        network: "cbr0".to_owned(),
        pod: protocol::PodRef { namespace: "shop".to_owned(), name: "web".to_owned(), uid: None },
        netns: String::new(),
        host_interfaces: Vec::new(),
        mac: None,
        addresses: vec![IpAddr::from([10, 244, 1, 7])],
    };
    let answer = thread::scope(|scope| {
        let gate = &gate;
        scope.spawn(move || {
            let Input::Attached(attached) = received.recv().unwrap() else { panic!("no pod") };
            attached.taken.send(is_closed).unwrap();
            meanwhile(gate);
            attached.written.send(PodRules::Policies).unwrap();
        });
        gate.answer(Request::Add(attachment))
    });
    assert!(!matches!(answer, None | Some(Response::Failed { .. })), "{answer:?}");
    removed.try_iter().collect()
}

#[test]
fn connections_of_a_former_owner_are_removed_once_while_the_rules_are_written() {
    assert_eq!(forgotten(true, true, |_| ()), [Traffic::Connections, Traffic::Waiting]);
    assert_eq!(forgotten(false, true, |_| ()), [Traffic::All]);
}

#[test]
fn connections_are_removed_after_the_rules_are_written_if_that_failed_before() {
    assert_eq!(forgotten(true, false, |_| ()), [Traffic::Connections, Traffic::All]);
}

#[test]
fn connections_are_removed_again_if_the_rules_were_repaired_meanwhile() {
    let repaired = forgotten(true, true, |gate| gate.metrics.drift_repairs.inc());
    assert_eq!(repaired, [Traffic::Connections, Traffic::All]);
}

#[test]
fn pod_that_starts_while_the_process_ends_is_left_to_the_next_one() {
    assert_eq!(add(|_| ()), None);
}

#[test]
fn pod_that_is_removed_while_its_rules_are_awaited_may_not_start() {
    let answer = add(|gate| gate.entries().clear());
    let reason = "the attachment was removed meanwhile".to_owned();
    assert_eq!(answer, Some(Response::Failed { reason }));
}

/// The attachment of each of these interfaces, in a gate.
fn with_interfaces(gate: &Gate, interfaces: &[&str]) {
    for name in interfaces {
        let attachment = Attachment {
            id: AttachmentId { container: (*name).into(), interface: "eth0".into() },
            pod: ObjectKey::new("shop", *name),
            uid: None,
            host_interfaces: if *name == "none" { Vec::new() } else { vec![(*name).into()] },
            mac: None,
            addresses: Vec::new(),
        };
        let entry =
            Entry { network: "cbr0".to_owned(), attachment: attachment.clone(), reported: Instant::now() };
        gate.entries().insert(attachment.id, entry);
    }
}

/// What is left after this, in a gate that knows a link that exists, one that does not, and a pod without a link.
fn left(clean: impl Fn(&Gate) + Send) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let (inputs, received) = mpsc::channel();
    let gate = gate(&folder, inputs);
    with_interfaces(&gate, &["lo", "gone0", "none"]);
    thread::scope(|scope| {
        scope.spawn(move || {
            for input in received.iter().take(1) {
                let Input::Detached(_, written) = input else { panic!("{input:?}") };
                written.send(()).unwrap();
            }
        });
        clean(&gate);
        gate.entries().keys().map(|id| id.container.to_string()).collect()
    })
}

#[test]
fn list_of_the_runtime_ends_no_pod_that_still_has_its_link() {
    assert_eq!(left(|gate| gate.gc("cbr0", &[])), ["lo"]);
    let none = protocol::AttachmentId::new("none", "eth0").unwrap();
    assert_eq!(left(|gate| gate.gc("cbr0", std::slice::from_ref(&none))), ["lo", "none"]);
}

#[test]
fn pod_whose_link_is_gone_ends_and_one_without_a_link_when_its_record_is_gone() {
    assert_eq!(left(Gate::prune), ["lo"]);
    let keeps = left(|gate| {
        let known = gate.entries().values().map(|entry| entry.attachment.clone()).collect::<Vec<_>>();
        for attachment in known {
            let known = KnownAttachment { attachment, object: None };
            gate.records.keep(&Recorded { network: "cbr0".to_owned(), known }).unwrap();
        }
        gate.prune();
    });
    assert_eq!(keeps, ["lo", "none"]);
}

#[test]
fn list_of_another_network_ends_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let gate = gate(&folder, mpsc::channel().0);
    with_interfaces(&gate, &["gone0"]);
    gate.gc("other", &[]);
    assert_eq!(gate.entries().len(), 1);
}
