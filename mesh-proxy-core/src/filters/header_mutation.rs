//! Header changes as a filter.

use std::sync::Arc;

use http::{request, response};

use crate::{
    config::{HeaderMutation, PerRoute},
    filter::{Flow, HttpFilter, RequestContext},
};

#[derive(Debug)]
pub(super) struct HeaderMutationFilter {
    pub(super) name: Arc<str>,
    pub(super) mutation: Arc<HeaderMutation>,
}

impl HeaderMutationFilter {
    fn own(&self, cx: &RequestContext) -> Option<Arc<HeaderMutation>> {
        match cx.per_filter(&self.name)?.config.as_ref()? {
            PerRoute::HeaderMutation(own) => Some(Arc::clone(own)),
            _ => None,
        }
    }
}

impl HttpFilter for HeaderMutationFilter {
    fn on_request(&self, cx: &mut RequestContext, head: &mut request::Parts) -> Flow {
        let own = self.own(cx);
        for mutation in [Some(&self.mutation), own.as_ref()].into_iter().flatten() {
            mutation.request.apply(&mut head.headers, |_template| None);
        }
        Flow::Continue
    }

    fn on_response(&self, cx: &mut RequestContext, head: &mut response::Parts) {
        let own = self.own(cx);
        for mutation in [Some(&self.mutation), own.as_ref()].into_iter().flatten() {
            mutation.response.apply(&mut head.headers, |_template| None);
        }
    }
}
