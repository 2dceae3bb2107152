//! Which namespaces are served, and what is left of clusters that went while nobody looked.

use http::Method;
use operator::Namespaces;
use serde_json::json;

use crate::api::Fault;
use crate::wait::eventually;
use crate::world::{SOON, World, cluster_path, core_path, plain};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_list_of_namespaces_nothing_outside_of_them_is_asked_for() {
    let world = World::new().await;
    for namespace in ["a", "b", "other"] {
        world.create(namespace, "c", &plain(1));
    }
    let operator = world.operator_with(1, Namespaces::Names(vec!["a".to_owned(), "b".to_owned()]));
    world.until_ready("a", "c").await;
    world.until_ready("b", "c").await;
    world.until_quiet().await;
    assert!(world.object("other", "c")["status"].is_null());
    for request in world.api.requests() {
        let inside = ["a", "b", "daskade"].iter().any(|name| request.path.contains(&format!("/namespaces/{name}/")));
        assert!(inside, "as rights in these namespaces allow: {} {}", request.method, request.path);
    }
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rights_that_one_namespace_does_not_give_hold_up_no_other() {
    let world = World::new().await;
    let message = "pods is forbidden: User \"op\" cannot list resource \"pods\" in namespace \"b\"".to_owned();
    let fault = Fault { method: Some(Method::GET), part: "/namespaces/b/services".to_owned(), ..Fault::default() };
    world.create("a", "c", &plain(1));
    let operator = world.operator_with(1, Namespaces::Names(vec!["a".to_owned(), "b".to_owned()]));
    world.until_ready("a", "c").await;
    // Taken away while it runs.
    world.api.fault(Fault { status: 403, message, ..fault });
    world.api.disturb(crate::watches::Disturbance::Torn);
    world.create("b", "c", &plain(1));
    world.create("a", "d", &plain(1));
    world.until_ready("a", "d").await;
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_that_gives_no_right_from_the_start_holds_up_no_other_and_is_served_once_it_does() {
    let world = World::new().await;
    let message = "pods is forbidden: User \"op\" cannot list resource \"pods\" in namespace \"b\"".to_owned();
    let part = "/namespaces/b/pods".to_owned();
    world.api.fault(Fault { method: Some(Method::GET), part, status: 403, message, ..Fault::default() });
    for namespace in ["a", "b"] {
        world.create(namespace, "c", &plain(1));
    }
    let operator = world.operator_with(1, Namespaces::Names(vec!["a".to_owned(), "b".to_owned()]));
    world.until_ready("a", "c").await;
    // Nothing is decided there from half of what there is.
    let made = world.writes().into_iter().filter(|write| write.path.contains("/namespaces/b/")).count();
    assert_eq!(made, 0);
    world.api.heal();
    world.until_ready("b", "c").await;
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_selector_a_namespace_is_served_while_its_labels_match() {
    let world = World::new().await;
    let label = |name: &str, team: &str| {
        let labels = json!({"kubernetes.io/metadata.name": name, "team": team});
        world.api.put(&format!("/api/v1/namespaces/{name}"), json!({"metadata": {"name": name, "labels": labels}}));
    };
    label("in", "data");
    label("out", "web");
    for namespace in ["in", "out"] {
        world.create(namespace, "c", &plain(1));
    }
    let operator = world.operator_with(1, Namespaces::Selector("team=data".to_owned()));
    world.until_ready("in", "c").await;
    world.until_quiet().await;
    assert!(world.object("out", "c")["status"].is_null());
    let before = world.writes().len();
    world.create("out", "goes", &plain(1));
    world.until_quiet().await;
    world.api.delete_with_children(&cluster_path("out", "goes"));
    world.until_quiet().await;
    assert_eq!(world.writes().len(), before, "no write is about a cluster that was never served");
    label("out", "data");
    world.until_ready("out", "c").await;
    label("in", "web");
    world.until_quiet().await;
    let before = world.writes().len();
    world.api.edit(&cluster_path("in", "c"), |object| object["spec"]["workers"][0]["replicas"] = json!(3));
    world.until_quiet().await;
    assert_eq!(world.writes().len(), before, "it is left as it is");
    label("in", "data");
    eventually("it is served again", SOON, || world.pods("in").len() == 4).await;
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn authorities_go_with_their_clusters_even_if_nobody_looked_and_no_others_do() {
    let world = World::new().await;
    world.set_kubelet_idle(true);
    // A sweep takes them in the order of their uids, which is this one.
    for (namespace, name) in [("a", "stays"), ("a", "goes"), ("b", "went"), ("a", "went")] {
        world.create(namespace, name, &json!({}));
    }
    let operator = world.operator();
    let authority = |namespace: &str, name: &str| {
        let uid = world.object(namespace, name)["metadata"]["uid"].as_str().unwrap().to_owned();
        core_path("daskade", "secrets", &format!("daskade-ca-{uid}"))
    };
    let [stays, goes, went, elsewhere] =
        [("a", "stays"), ("a", "goes"), ("a", "went"), ("b", "went")].map(|(ns, name)| authority(ns, name));
    let is_there = |path: &String| world.api.object(path).is_some();
    eventually("all are there", SOON, || [&stays, &goes, &went, &elsewhere].into_iter().all(is_there)).await;
    world.until_quiet().await;
    world.api.delete_with_children(&cluster_path("a", "goes"));
    eventually("it goes with its cluster", SOON, || !is_there(&goes)).await;
    operator.end().await;
    world.api.delete_with_children(&cluster_path("a", "went"));
    world.api.delete_with_children(&cluster_path("b", "went"));
    // One that does not serve the other namespace knows nothing of what is there.
    let narrow = world.operator_with(2, Namespaces::Names(vec!["a".to_owned()]));
    eventually("it is swept", SOON, || !is_there(&went)).await;
    assert!(elsewhere < went, "the other namespace's had its turn before");
    assert!(is_there(&stays) && is_there(&elsewhere));
    narrow.end().await;
    let wide = world.operator_with(3, Namespaces::All);
    eventually("it is swept", SOON, || !is_there(&elsewhere)).await;
    assert!(is_there(&stays));
    let noted = || {
        let noted = world.api.object(&core_path("daskade", "configmaps", "daskade-authorities"));
        noted.and_then(|noted| Some(noted["data"].as_object()?.len()))
    };
    eventually("only the one that stays is noted", SOON, || noted() == Some(1)).await;
    wide.end().await;
}
