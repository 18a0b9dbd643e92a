//! Who hears of external IPs that the configuration does not allow (`allowedExternalIPs`). That they are not served is
//! decided by `model::view`.

use api::Rejection;
use events::{Event, Reason, Regarding};
use model::view::ExternalIps;
use model::{Change, Kind, Object, Service};

/// What there is to say of the Services of a change: to the log and the list of what is rejected, and by an Event. Nothing where all are
/// allowed, or none by the feature gate, which is no fault of any Service.
pub(crate) fn not_allowed(change: &Change, allowed: &ExternalIps) -> Vec<(Rejection, Event)> {
    if !matches!(allowed, ExternalIps::Within(_)) {
        return Vec::new();
    }
    let objects = match change {
        Change::Apply(object) => std::slice::from_ref(object),
        Change::Replace { objects, .. } => objects,
        Change::Delete(..) => &[],
    };
    let services = objects.iter().filter_map(|object| match object {
        Object::Service(service) => Some(service),
        _ => None,
    });
    services.flat_map(|service| told(service, allowed)).collect()
}

fn told(service: &Service, allowed: &ExternalIps) -> impl Iterator<Item = (Rejection, Event)> {
    let left_out = service.external_ips.iter().filter(|addr| !allowed.serves(**addr));
    left_out.map(|addr| {
        let reason = format!("{addr} is in no range of allowedExternalIPs and is not served");
        let regarding = Regarding::Service(service.name.clone(), service.uid);
        let event =
            Event::new(Reason::ExternalIPNotAllowed, regarding).note(format!("spec.externalIPs: {reason}"));
        let rejection = Rejection {
            kind: Kind::Service,
            name: Some(service.name.clone()),
            path: "spec.externalIPs".to_owned(),
            reason,
        };
        (rejection, event)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::ObjectName;

    fn service(name: &str, external_ips: &[&str]) -> Object {
        let external_ips = external_ips.iter().map(|text| text.parse().unwrap()).collect();
        Object::Service(Service { external_ips, ..Service::new(ObjectName::new("shop", name)) })
    }

    #[track_caller]
    fn check(change: &Change, allowed: &ExternalIps, expected: &[(&str, &str)]) {
        let told = not_allowed(change, allowed);
        let told: Vec<_> = told
            .iter()
            .map(|(rejection, event)| {
                assert_eq!(event.note, format!("{}: {}", rejection.path, rejection.reason));
                (rejection.name.as_ref().unwrap().name.to_string(), rejection.reason.clone())
            })
            .collect();
        let expected: Vec<_> = expected
            .iter()
            .map(|(name, address)| {
                let reason = format!("{address} is in no range of allowedExternalIPs and is not served");
                ((*name).to_owned(), reason)
            })
            .collect();
        assert_eq!(told, expected);
    }

    #[test]
    fn each_address_outside_the_ranges_is_told_with_its_service() {
        let allowed =
            ExternalIps::Within(["198.51.100.0/24".parse().unwrap(), "fd00::/8".parse().unwrap()].into());
        let web = service("web", &["203.0.113.1", "198.51.100.7", "fe80::1", "fd00::1"]);
        let applied = Change::Apply(web.clone());
        check(&applied, &allowed, &[("web", "203.0.113.1"), ("web", "fe80::1")]);
        check(&applied, &ExternalIps::All, &[]);
        check(&applied, &ExternalIps::None, &[]);
        let objects = vec![service("db", &["198.51.100.8"]), web];
        let listed = Change::Replace { kind: Kind::Service, objects, keep: Vec::new() };
        check(&listed, &allowed, &[("web", "203.0.113.1"), ("web", "fe80::1")]);
        check(&Change::Delete(Kind::Service, ObjectName::new("shop", "web")), &allowed, &[]);
    }
}
