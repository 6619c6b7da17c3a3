//! The story, and what is expected after each step.
//!
//! The expected tables are written by hand, from reading the policies: nothing here is computed by towpath.

use std::net::Ipv4Addr;

/// A group of pods, and the steps that they take part in.
#[derive(Debug)]
pub(super) struct Scene {
    /// What it shows.
    pub(super) title: &'static str,
    /// The namespaces that it adds, with their labels.
    pub(super) namespaces: &'static [(&'static str, Labels)],
    /// The pods that it adds.
    pub(super) cast: &'static [Actor],
    /// The hosts outside of the cluster that take part.
    pub(super) outsiders: &'static [Outsider],
    /// What happens.
    pub(super) steps: &'static [StoryStep],
}

/// Label keys and values.
pub(super) type Labels = &'static [(&'static str, &'static str)];

/// A pod. It listens on its own port, TCP and UDP, and on TCP 8080.
#[derive(Debug)]
pub(super) struct Actor {
    /// `namespace/name`.
    pub(super) name: &'static str,
    /// Its node, counted from 0.
    pub(super) node: usize,
    /// Its labels, until a step changes them.
    pub(super) labels: Labels,
    /// Its own port.
    pub(super) port: u16,
}

/// An address of the external host. It listens like a pod.
#[derive(Debug)]
pub(super) struct Outsider {
    /// The address as the tables show it.
    pub(super) name: &'static str,
    /// The address.
    pub(super) address: Ipv4Addr,
    /// Its own port.
    pub(super) port: u16,
}

/// One change, and what is expected then.
#[derive(Debug)]
pub(super) struct StoryStep {
    /// What changes.
    pub(super) title: &'static str,
    /// The manifests that are added: their names and texts.
    pub(super) adds: &'static [(&'static str, &'static str)],
    /// The pods whose labels change.
    pub(super) relabels: &'static [(&'static str, Labels)],
    /// Who reaches whom, in the notation of [`super::table`].
    pub(super) expected: &'static str,
}

/// The manifests of policies, each under its file's name.
macro_rules! manifests {
    ($($name:literal),*) => { &[$(($name, include_str!(concat!("manifests/", $name)))),*] };
}

/// A step that only adds manifests.
const fn step(
    title: &'static str,
    adds: &'static [(&'static str, &'static str)],
    expected: &'static str,
) -> StoryStep {
    StoryStep { title, adds, relabels: &[], expected }
}

const fn actor(name: &'static str, node: usize, labels: Labels, port: u16) -> Actor {
    Actor { name, node, labels, port }
}

/// The whole story.
pub(super) const SCENES: &[Scene] = &[TENANT, DATABASE, NAME_SERVICE];

/// The pod whose chains are shown at the end.
pub(super) const SHOWN: &str = "default/db";

const TENANT: Scene = Scene {
    title: "a management UI, a tenant's frontend and backend, and a client",
    namespaces: &[
        ("management-ui", &[("role", "management-ui")]),
        ("tenant", &[]),
        ("client", &[("role", "client")]),
    ],
    cast: &[
        actor("management-ui/ui", 0, &[("role", "management-ui")], 9001),
        actor("tenant/frontend", 0, &[("role", "frontend")], 80),
        actor("tenant/backend", 1, &[("role", "backend")], 6379),
        actor("client/client", 1, &[("role", "client")], 9000),
    ],
    outsiders: &[],
    steps: &[
        step(
            "no policy yet: all open",
            &[],
            "                   ui   frontend  backend  client
             management-ui/ui   -    txu       txu      txu
             tenant/frontend    txu  -         txu      txu
             tenant/backend     txu  txu       -        txu
             client/client      txu  txu       txu      -",
        ),
        step(
            "default deny in both namespaces: all dark, but for the UI, which no policy selects",
            manifests!("tenant-default-deny.yaml", "client-default-deny.yaml"),
            "                   ui   frontend  backend  client
             management-ui/ui   -    ...       ...      ...
             tenant/frontend    txu  -         ...      ...
             tenant/backend     txu  ...       -        ...
             client/client      txu  ...       ...      -",
        ),
        step(
            "the UI is allowed into both",
            manifests!("tenant-allow-ui.yaml", "client-allow-ui.yaml"),
            "                   ui   frontend  backend  client
             management-ui/ui   -    txu       txu      txu
             tenant/frontend    txu  -         ...      ...
             tenant/backend     txu  ...       -        ...
             client/client      txu  ...       ...      -",
        ),
        step(
            "the frontend is allowed to the backend, on TCP 6379 only",
            manifests!("tenant-backend.yaml"),
            "                   ui   frontend  backend  client
             management-ui/ui   -    txu       txu      txu
             tenant/frontend    txu  -         t..      ...
             tenant/backend     txu  ...       -        ...
             client/client      txu  ...       ...      -",
        ),
        step(
            "clients are allowed to the frontend, on TCP 80 only",
            manifests!("tenant-frontend.yaml"),
            "                   ui   frontend  backend  client
             management-ui/ui   -    txu       txu      txu
             tenant/frontend    txu  -         t..      ...
             tenant/backend     txu  ...       -        ...
             client/client      txu  t..       ...      -",
        ),
    ],
};

const DATABASE: Scene = Scene {
    title: "labels and address blocks: who may reach the database, and whom it may call",
    namespaces: &[("default", &[]), ("myproject", &[("project", "myproject")])],
    cast: &[
        actor("default/db", 0, &[("role", "db")], 80),
        actor("default/client", 1, &[], 9000),
        actor("myproject/worker", 1, &[], 9000),
    ],
    outsiders: &[
        Outsider { name: "172.17.0.10", address: Ipv4Addr::new(172, 17, 0, 10), port: 80 },
        Outsider { name: "172.17.1.10", address: Ipv4Addr::new(172, 17, 1, 10), port: 80 },
        Outsider { name: "10.0.0.10", address: Ipv4Addr::new(10, 0, 0, 10), port: 5978 },
    ],
    steps: &[
        step(
            "no policy yet: all open",
            &[],
            "                   db   client  worker  10.0.0.10
             default/db         -    txu     txu     txu
             default/client     txu  -       txu     txu
             myproject/worker   txu  txu     -       txu
             172.17.0.10        txu  txu     txu     -
             172.17.1.10        txu  txu     txu     -",
        ),
        step(
            "on TCP 80, db takes 172.17.0.0/16 except 172.17.1.0/24, project=myproject and role=frontend; it calls \
             10.0.0.0/24 on TCP 5978. The client has no label: refused",
            manifests!("default-database.yaml"),
            "                   db   client  worker  10.0.0.10
             default/db         -    ...     ...     t..
             default/client     ...  -       txu     txu
             myproject/worker   t..  txu     -       txu
             172.17.0.10        t..  txu     txu     -
             172.17.1.10        ...  txu     txu     -",
        ),
        StoryStep {
            title: "the client gets the label role=frontend",
            adds: &[],
            relabels: &[("default/client", &[("role", "frontend")])],
            expected: "                   db   client  worker  10.0.0.10
             default/db         -    ...     ...     t..
             default/client     t..  -       txu     txu
             myproject/worker   t..  txu     -       txu
             172.17.0.10        t..  txu     txu     -
             172.17.1.10        ...  txu     txu     -",
        },
    ],
};

const NAME_SERVICE: Scene = Scene {
    title: "egress: what becomes of DNS",
    namespaces: &[("shop", &[]), ("kube-system", &[])],
    cast: &[
        actor("shop/web", 0, &[("app", "web")], 80),
        actor("shop/api", 1, &[("app", "api")], 9000),
        actor("kube-system/coredns", 1, &[("k8s-app", "kube-dns")], 53),
    ],
    outsiders: &[],
    steps: &[
        step(
            "no policy yet: all open",
            &[],
            "                      web  api  coredns
             shop/web              -    txu  txu
             shop/api              txu  -    txu
             kube-system/coredns   txu  txu  -",
        ),
        step(
            "default deny of egress in shop: DNS is dead",
            manifests!("shop-default-deny-egress.yaml"),
            "                      web  api  coredns
             shop/web              -    ...  ...
             shop/api              ...  -    ...
             kube-system/coredns   txu  txu  -",
        ),
        step(
            "DNS to kube-system is allowed: it lives again",
            manifests!("shop-allow-dns.yaml"),
            "                      web  api  coredns
             shop/web              -    ...  t.u
             shop/api              ...  -    t.u
             kube-system/coredns   txu  txu  -",
        ),
    ],
};
