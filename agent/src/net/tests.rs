//! What is decided about interfaces; that the kernel does it is for the system tests to see.

use std::net::IpAddr;

use vmbox_protocol::agent::{Interface as Wire, InterfaceAddress, InterfaceRoute, NetworkRequest};
use vmbox_protocol::slot_mac;

use super::parse::BadNetwork;
use super::plan::{Change, Item, changes};
use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn address(text: &str) -> Address {
    Address {
        ip: ip(text),
        prefix_length: 24,
        broadcast: None,
        peer: None,
        scope: 0,
        no_prefix_route: false,
    }
}

fn route(gateway: Option<&str>) -> Route {
    Route {
        destination: ip("0.0.0.0"),
        prefix_length: 0,
        gateway: gateway.map(ip),
        source: None,
        scope: 0,
        onlink: false,
        metric: 0,
        mtu: 0,
        advertised_mss: 0,
    }
}

fn interface() -> Interface {
    Interface {
        slot: slot_mac(0),
        name: "eth0".into(),
        mac: [2, 0, 0, 0, 0, 9],
        mtu: 1400,
        up: true,
        addresses: vec![address("10.0.0.2")],
        routes: vec![route(Some("10.0.0.1")), route(None)],
        neighbours: Vec::new(),
    }
}

#[test]
fn addresses_come_before_routes_and_gateways_last() {
    let wanted = interface();
    let items: Vec<_> = changes(None, &wanted)
        .into_iter()
        .skip_while(|change| *change != Change::Up(true))
        .skip(1)
        .collect();
    let expected = [
        Item::Address(address("10.0.0.2")),
        Item::Route(route(None)),
        Item::Route(route(Some("10.0.0.1"))),
    ];
    assert_eq!(items, expected.map(Change::Set));
}

#[test]
fn what_is_gone_is_removed_in_reverse_before_anything_is_set() {
    let before = interface();
    let mut wanted = interface();
    wanted.addresses = vec![address("10.0.0.3")];
    wanted.routes.truncate(1);
    let changes = changes(Some(&before), &wanted);
    let forgotten: Vec<_> = changes
        .iter()
        .take_while(|change| matches!(change, Change::Forget(_)))
        .cloned()
        .collect();
    let expected = [Item::Route(route(None)), Item::Address(address("10.0.0.2"))];
    assert_eq!(forgotten, expected.map(Change::Forget));
    assert!(!changes[2..].iter().any(|c| matches!(c, Change::Forget(_))));
}

#[test]
fn an_interface_that_is_down_gets_nothing() {
    let mut wanted = interface();
    wanted.up = false;
    let changes = changes(None, &wanted);
    assert!(changes.contains(&Change::Up(false)));
    assert!(!changes.iter().any(|c| matches!(c, Change::Set(_))));
}

fn wire() -> Wire {
    Wire {
        slot: slot_mac(1).to_vec(),
        name: "eth0".into(),
        mac: vec![2, 0, 0, 0, 0, 9],
        mtu: 1500,
        up: true,
        addresses: vec![InterfaceAddress {
            address: vec![10, 0, 0, 2],
            prefix_length: 24,
            ..Default::default()
        }],
        routes: vec![InterfaceRoute {
            destination: vec![0; 16],
            gateway: [&[0xfe, 0x80][..], &[0; 13], &[1]].concat(),
            onlink: true,
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn parsed(wire: Wire) -> Result<Vec<Interface>, BadNetwork> {
    parse(&NetworkRequest {
        interfaces: vec![wire],
        ..Default::default()
    })
}

#[test]
fn a_request_is_read() {
    let read = parsed(wire()).unwrap().remove(0);
    assert_eq!(read.addresses, [address("10.0.0.2")]);
    assert_eq!(read.routes[0].destination, ip("::"));
    assert_eq!(read.routes[0].gateway, Some(ip("fe80::1")));
}

#[test]
fn a_bad_field_is_named() {
    type Broken = (&'static str, fn(&mut Wire));
    let broken: [Broken; 6] = [
        ("name", |w| w.name = "a/b".into()),
        ("name", |w| w.name = "sixteen-letters-".into()),
        ("slot", |w| w.slot.truncate(5)),
        ("addresses", |w| w.addresses[0].prefix_length = 33),
        ("addresses", |w| w.addresses[0].address.truncate(3)),
        // A gateway of the other family.
        ("routes", |w| w.routes[0].destination = vec![0; 4]),
    ];
    for (field, breaks) in broken {
        let mut wire = wire();
        breaks(&mut wire);
        let message = parsed(wire).unwrap_err().to_string();
        assert!(message.starts_with(field), "{message}");
    }
}

#[test]
fn slots_are_told_by_the_address_they_came_with() {
    let mut link = Link {
        index: 2,
        name: "eth0".into(),
        mac: None,
        permanent: Some(slot_mac(3)),
    };
    assert_eq!(link.slot_number(), Some(3));
    link.permanent = Some([2, 0, 0, 0, 0, 3]);
    assert!(!link.is_slot());
}
