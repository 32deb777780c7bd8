//! CORS: preflights are answered, responses are marked. The policy is per route.

use std::sync::Arc;

use http::{HeaderValue, Method, StatusCode, header, request, response};

use crate::{
    config::{Cors, PerRoute},
    filter::{Flow, HttpFilter, LocalReply, RequestContext},
};

#[derive(Debug)]
pub(super) struct CorsFilter {
    pub(super) name: Arc<str>,
}

/// The origin that was allowed, for the response.
#[derive(Debug, Clone)]
struct Allowed(HeaderValue);

impl CorsFilter {
    fn policy(&self, cx: &RequestContext) -> Option<Arc<Cors>> {
        match cx.per_filter(&self.name)?.config.as_ref()? {
            PerRoute::Cors(policy) => Some(Arc::clone(policy)),
            _ => None,
        }
    }
}

impl HttpFilter for CorsFilter {
    fn on_request(&self, cx: &mut RequestContext, head: &mut request::Parts) -> Flow {
        let Some(policy) = self.policy(cx) else { return Flow::Continue };
        let Some(origin) = head.headers.get(header::ORIGIN).filter(|o| !o.is_empty()) else {
            return Flow::Continue;
        };
        let allowed = origin.to_str().is_ok_and(|o| policy.allow_origins.iter().any(|m| m.matches(o)));
        let preflight = head.method == Method::OPTIONS
            && head.headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        if allowed {
            cx.extensions_mut().insert(Allowed(origin.clone()));
        }
        if !preflight || (!allowed && policy.forward_not_matching_preflights) {
            return Flow::Continue;
        }
        let mut reply = LocalReply::new(StatusCode::OK, "", "cors_response");
        if allowed {
            let mut set = |name, value: &Option<HeaderValue>| {
                if let Some(value) = value {
                    reply.headers.insert(name, value.clone());
                }
            };
            set(header::ACCESS_CONTROL_ALLOW_METHODS, &policy.allow_methods);
            set(header::ACCESS_CONTROL_ALLOW_HEADERS, &policy.allow_headers);
            set(header::ACCESS_CONTROL_MAX_AGE, &policy.max_age);
        }
        Flow::Reply(Box::new(reply))
    }

    fn on_response(&self, cx: &mut RequestContext, head: &mut response::Parts) {
        let Some(Allowed(origin)) = cx.extensions().get::<Allowed>().cloned() else { return };
        let Some(policy) = self.policy(cx) else { return };
        head.headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        if policy.allow_credentials {
            head.headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
        if let Some(expose) = &policy.expose_headers {
            head.headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, expose.clone());
        }
    }
}
