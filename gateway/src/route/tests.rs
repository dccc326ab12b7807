use proptest::prelude::*;
use tokio::sync::Notify;

use super::*;
use crate::pool::model_registry::ServedModel;

fn routes(config: &str) -> Routes {
    let config =
        forebay_config::parse(config, "test").unwrap_or_else(|problems| panic!("{problems}"));
    let news = Arc::new(Notify::new());
    let pools = config.pools.iter().map(|pool| Pool::new(pool.clone(), Arc::clone(&news)));
    Routes::new(&config, pools.collect())
}

const TWO: &str = "\
gateway:
  routes:
    - {model: split, by: tenant, pools: [{pool: a, weight: 3}, {pool: b, weight: 1}]}
    - {model: shared, by: request, pools: [{pool: a, weight: 0}, {pool: b}]}
pools:
  - {name: a, endpoints: ['h:1'], models: [base, shared], aliases: {gpt: base}, adapters: [lora], fallback: {pool: b, after: 5s}}
  - {name: b, endpoints: ['h:2'], models: [other, shared], aliases: {gpt-b: other}}
";

/// The pool and the name that is sent there.
fn plan_for(routes: &Routes, model: &str) -> Result<(String, Option<String>), String> {
    let plan = routes.plan(Some(model), |_| Some("key".to_owned()), |_| true);
    let plan = plan.map_err(|refusal| refusal.to_string())?;
    Ok((plan.first.pool.name.to_string(), plan.first.served.as_deref().map(str::to_owned)))
}

fn model(id: &str, parent: Option<&str>) -> ServedModel {
    ServedModel { id: id.to_owned(), parent: parent.map(str::to_owned), max_model_len: Some(7) }
}

#[tokio::test]
async fn names_lead_to_their_pool_and_aliases_become_a_name_that_it_knows() {
    let routes = routes(TWO);
    for (model, pool, served) in [
        ("base", "a", None),
        ("gpt", "a", Some("base")),
        ("lora", "a", None),
        ("other", "b", None),
        ("gpt-b", "b", Some("other")),
        ("shared", "b", None),
    ] {
        let want = (pool.to_owned(), served.map(str::to_owned));
        assert_eq!(plan_for(&routes, model), Ok(want), "{model}");
    }
    let unknown = plan_for(&routes, "Base").expect_err("case matters");
    let names = "`split`, `shared`, `base`, `gpt`, `lora`, `other`, `gpt-b`";
    assert_eq!(unknown, format!("The model `Base` does not exist. Known models: {names}."));
    let hidden = routes.plan(Some("x"), |_| None, |name| name == "lora").err().expect("unknown");
    assert!(hidden.to_string().ends_with("Known models: `lora`."), "{hidden}");
    assert!(matches!(routes.plan(None, |_| None, |_| true), Err(Refusal::NoModel { .. })));
}

#[tokio::test]
async fn a_fallback_gets_a_name_that_it_knows() {
    let routes = routes(TWO);
    let fallback = |model: &str| {
        let plan = routes.plan(Some(model), |_| None, |_| true).expect("known");
        plan.fallback.map(|other| (other.to.pool.name.to_string(), other.to.served, other.after))
    };
    let after = Some(Duration::from_secs(5));
    assert_eq!(fallback("base"), Some(("b".into(), Some("other".into()), after)));
    assert_eq!(fallback("gpt"), Some(("b".into(), Some("other".into()), after)));
    assert_eq!(fallback("other"), None);
}

#[tokio::test]
async fn adapters_that_replicas_report_are_routed_and_listed() {
    let routes = routes(TWO);
    let address = ([127, 0, 0, 1], 1).into();
    routes.pools[1].models.set(address, vec![model("other", None), model("ad", Some("other"))]);
    assert_eq!(plan_for(&routes, "ad"), Ok(("b".into(), None)));
    let all = routes.all();
    let find = |name: &str| all.iter().find(|listed| listed.name == name).expect("listed");
    assert_eq!(find("ad").parent.as_deref(), Some("other"));
    assert_eq!(find("lora").parent.as_deref(), Some("base"), "declared, and nothing runs");
    assert_eq!((find("gpt").root.as_str(), find("gpt").parent.as_deref()), ("base", None));
    assert_eq!(find("other").max_model_len, Some(7));
    assert_eq!(find("base").max_model_len, None);
}

#[tokio::test]
async fn a_pool_without_names_accepts_any_until_its_replicas_report_theirs() {
    let routes = routes("pools: [{name: a, endpoints: ['h:1']}]");
    assert_eq!(plan_for(&routes, "anything"), Ok(("a".into(), None)));
    routes.pools[0].models.set(([127, 0, 0, 1], 1).into(), vec![model("tiny", None)]);
    assert!(plan_for(&routes, "anything").is_err());
    assert_eq!(plan_for(&routes, "tiny"), Ok(("a".into(), None)));
    let plan = routes.plan(None, |_| None, |_| true).expect("just one pool");
    assert_eq!(plan.model.as_deref(), Some("tiny"));
}

#[tokio::test]
async fn a_split_keeps_a_key_on_its_side_and_gives_each_pool_its_share() {
    let routes = routes(TWO);
    let side = |key: &str| {
        let plan = routes.plan(Some("split"), |_| Some(key.to_owned()), |_| true).expect("known");
        plan.first.pool.name.to_string()
    };
    let to_a = (0..10_000).filter(|n| side(&format!("tenant-{n}")) == "a").count();
    assert!((7_300..7_700).contains(&to_a), "{to_a} of 10000 at three quarters");
    assert_eq!(side("tenant-1"), side("tenant-1"));
    // These do not change with the version, or conversations would move when it does.
    assert!((point("m", "k") - 0.7807).abs() < 0.0001, "{}", point("m", "k"));
}

#[tokio::test]
async fn a_split_model_that_replicas_report_later_is_sent_by_its_own_name() {
    let routes = routes(
        "gateway: {routes: [{model: ad, pools: [{pool: a}]}]}\n\
         pools: [{name: a, endpoints: ['h:1'], models: [base]}]",
    );
    assert_eq!(
        plan_for(&routes, "ad"),
        Ok(("a".into(), Some("base".into()))),
        "as far as is known"
    );
    let address = ([127, 0, 0, 1], 1).into();
    routes.pools[0].models.set(address, vec![model("base", None), model("ad", Some("base"))]);
    assert_eq!(plan_for(&routes, "ad"), Ok(("a".into(), None)));
    assert_eq!(routes.all()[0].root, "ad");
}

proptest! {
    #[test] // a higher weight moves no request away from a pool
    fn a_growing_canary_keeps_its_requests(key in "[a-z]{1,8}", weight in 1..50u32, more in 0..50u32) {
        let config = |weight: u32| format!(
            "gateway: {{routes: [{{model: m, pools: [{{pool: a, weight: {}}}, {{pool: b, weight: {weight}}}]}}]}}\n\
             pools: [{{name: a, endpoints: ['h:1'], models: [x]}}, {{name: b, endpoints: ['h:2'], models: [y]}}]",
            100 - weight
        );
        let side = |routes: Routes| {
            let plan = routes.plan(Some("m"), |_| Some(key.clone()), |_| true).expect("known");
            plan.first.pool.name.to_string()
        };
        if side(routes(&config(weight))) == "b" {
            prop_assert_eq!(side(routes(&config(weight + more))), "b");
        }
    }
}
