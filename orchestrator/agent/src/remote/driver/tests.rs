use super::*;
use csi::message::Topology;

fn info(kind: &str, name: &str, versions: &[&str]) -> PluginInfo {
    PluginInfo {
        r#type: kind.to_owned(),
        name: name.to_owned(),
        supported_versions: versions.iter().map(|one| (*one).to_owned()).collect(),
        ..PluginInfo::default()
    }
}

#[test]
fn only_storage_drivers_of_this_interface_are_taken() {
    assert_eq!(check(&info(KIND, "hostpath.csi.k8s.io", &["1.0.0"])), Ok(()));
    assert_eq!(check(&info(KIND, "d", &["v0.3.0", "v1.2.0"])), Ok(()));
    for (kind, name, version) in [
        ("DevicePlugin", "d", "1.0.0"),
        (KIND, "", "1.0.0"),
        (KIND, "../x", "1.0.0"),
        (KIND, ".x", "1.0.0"),
        (KIND, "d", "0.3.0"),
        (KIND, "d", "10.0.0"),
    ] {
        assert!(check(&info(kind, name, &[version])).is_err(), "{kind} {name} {version}");
    }
}

#[test]
fn a_driver_is_listed_with_its_node_its_topology_and_its_limit() {
    let segments = [("zone".to_owned(), "a".to_owned())].into();
    let node = NodeGetInfoResponse {
        node_id: "n1".to_owned(),
        max_volumes_per_node: 8,
        accessible_topology: Some(Topology { segments }),
    };
    let wanted = json!({"name": "d", "nodeID": "n1", "topologyKeys": ["zone"],
        "allocatable": {"count": 8}});
    assert_eq!(entry("d", &node), wanted);
    let bare = NodeGetInfoResponse { node_id: "n1".to_owned(), ..NodeGetInfoResponse::default() };
    assert_eq!(entry("d", &bare).get("allocatable"), None, "no limit");
}

#[test]
fn a_refused_socket_is_asked_again_later_and_a_new_one_at_once() {
    let drivers = Drivers::default();
    let socket = (PathBuf::from("/r/d.sock"), 7);
    assert!(drivers.is_due(&socket));
    drivers.refuse(socket.clone());
    let rounds = (1..).find(|_| drivers.is_due(&socket)).unwrap();
    assert_eq!(rounds, PATIENCE_ROUNDS);
    drivers.refuse(socket);
    assert!(drivers.is_due(&(PathBuf::from("/r/d.sock"), 8)));
}
