//! A pod that assigns another pod's addresses to its own interface, as its owner can from inside.

use towpath::{
    lab::frame::{Ip, Link},
    model::Family,
};

use crate::{
    bed::{Bed, Host, PORT, udp},
    pods::{FREE, FRIEND, OPEN, SHY},
    table::{Expect, Outcome, observed},
};

pub(crate) fn rows(bed: &Bed) -> Vec<Outcome> {
    let run = |lines: &[String]| bed.netns(FREE).ip(lines).expect("a change within the pod");
    let add = |family| format!("addr add {}/{} dev eth0", bed.address(FRIEND, family), prefix(family));
    run(&[
        "link set eth0 down".to_owned(),
        format!("link set eth0 address {}", bed.mac(FRIEND)),
        "link set eth0 up".to_owned(),
        add(Family::V4),
        format!("{} nodad", add(Family::V6)),
    ]);
    let as_friend = |family, own_mac: bool, token| {
        let source = if own_mac { bed.mac(FREE) } else { bed.mac(FRIEND) };
        let link = Link { source, ..bed.link(FREE, SHY) };
        let ip = Ip::new(bed.address(FRIEND, family), bed.address(SHY, family));
        bed.send(FREE, &link.ip(&udp(&ip, token, PORT, &[])));
    };
    let tokens = Family::BOTH.map(|family| (family, [bed.token(), bed.token()]));
    // A bridge takes a moment until it forwards frames from a link that was down.
    for _ in 0..20 {
        for (family, [other_mac, own_mac]) in tokens {
            as_friend(family, false, other_mac);
            as_friend(family, true, own_mac);
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    bed.settle_except(FREE);
    let mut rows: Vec<Outcome> = tokens
        .into_iter()
        .map(|(family, tokens)| {
            let arrived = tokens.iter().any(|token| bed.receivers(*token).contains(&SHY));
            row(bed, "another pod's addresses on its own interface", family, SHY, (Expect::Never, arrived))
        })
        .collect();
    let remove = |family| format!("addr del {}/{} dev eth0", bed.address(FRIEND, family), prefix(family));
    let mut back = vec![
        remove(Family::V4),
        remove(Family::V6),
        "link set eth0 down".to_owned(),
        format!("link set eth0 address {}", bed.mac(FREE)),
        "link set eth0 up".to_owned(),
    ];
    // Setting the interface down removed what depended on it.
    let (gateway4, gateway6) = (bed.gateway_address(0, Family::V4), bed.gateway_address(0, Family::V6));
    if bed.setting.topology.has_bridge() {
        back.push(format!("addr replace {}/64 dev eth0 nodad", bed.v6(FREE)));
    } else {
        back.push(format!("addr replace {}/128 dev eth0 nodad", bed.v6(FREE)));
        back.push(format!("route replace {gateway4}/32 dev eth0"));
        back.push(format!("route replace {gateway6}/128 dev eth0"));
    }
    back.push(format!("route replace 0.0.0.0/0 via {gateway4} dev eth0"));
    back.push(format!("route replace ::/0 via {gateway6} dev eth0"));
    run(&back);
    bed.settle();
    for family in Family::BOTH {
        let token = bed.token();
        let packet = udp(&bed.ip(FREE, OPEN, family), token, PORT, &[]);
        bed.send(FREE, &bed.link(FREE, OPEN).ip(&packet));
        bed.settle();
        let arrived = bed.receivers(token).contains(&OPEN);
        rows.push(row(bed, "its own addresses again", family, OPEN, (Expect::Arrives, arrived)));
    }
    rows
}

fn row(bed: &Bed, name: &str, family: Family, to: Host, verdict: (Expect, bool)) -> Outcome {
    observed(bed, "changed addresses", format!("{name}, {family:?}"), (FREE, to), verdict)
}

const fn prefix(family: Family) -> u8 {
    match family {
        Family::V4 => 32,
        Family::V6 => 128,
    }
}
