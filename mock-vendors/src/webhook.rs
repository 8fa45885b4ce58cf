//! `/async/{name}`: accepts at once, and calls back later, early, often, with a forgery, or never.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::behave::{Behave, CallbackPlan};
use crate::callbacks::{Callback, Callbacks};
use crate::reply::{Reply, error, json, quote};
use crate::vendor::Visit;
use crate::{sign, sync, text};

/// Takes the work and answers 202. Work that cannot be called back about is refused with the reason.
///
/// The callback is scheduled here, before the call's own latency, so it comes even if the caller has hung up by then.
pub(crate) async fn accept(callbacks: &Callbacks, visit: &Visit, behave: &Behave, body: &Bytes) -> Reply {
    let id = visit.vendor.next_id();
    let reply = json(202, format!(r#"{{"id":{},"status":"accepted"}}"#, quote(&id)));
    let plan = &behave.callback;
    if plan.never && !plan.forged {
        return reply;
    }
    let callback = match prepare(visit, behave, body, &id) {
        Ok(callback) => callback,
        Err(why) => return error(400, &why),
    };
    match send(callbacks, callback, plan, behave.latency).await {
        Ok(()) => reply,
        Err(crate::callbacks::Full) => error(503, "too many callbacks are waiting"),
    }
}

async fn send(
    callbacks: &Callbacks,
    callback: Callback,
    plan: &CallbackPlan,
    latency: Duration,
) -> Result<(), crate::callbacks::Full> {
    if !plan.early || callback.times == 0 {
        return callbacks.schedule(callback, latency + plan.after);
    }
    let copies = Callback {
        vendor: Arc::clone(&callback.vendor),
        id: callback.id.clone(),
        url: callback.url.clone(),
        body: callback.body.clone(),
        times: callback.times - 1,
        forgery: None,
        secret: callback.secret.clone(),
        ..callback
    };
    callbacks.send_now(Callback { times: 1, ..callback }).await?;
    if copies.times > 0 { callbacks.schedule(copies, latency + plan.after) } else { Ok(()) }
}

fn prepare(visit: &Visit, behave: &Behave, body: &Bytes, id: &str) -> Result<Callback, String> {
    let plan = &behave.callback;
    let url = text::string_at(body, &plan.url_at)
        .ok_or_else(|| format!("the body has no callback URL at `{}`", plan.url_at))?;
    Ok(Callback {
        vendor: Arc::clone(&visit.vendor),
        id: id.into(),
        url,
        body: outcome(visit, behave, body, id),
        times: if plan.never { 0 } else { plan.times },
        gap: plan.gap,
        forgery: plan.forged.then(|| forgery(plan, body, id)),
        retries: plan.retries,
        secret: plan.sign_secret.as_deref().map(sign::secret).transpose()?,
    })
}

fn outcome(visit: &Visit, behave: &Behave, body: &Bytes, id: &str) -> Bytes {
    let head = head(&behave.callback, body, id);
    if behave.failed {
        return format!(r#"{{{head},"status":"error","error":"no record found"}}"#).into();
    }
    let echo =
        text::at(body, "/payload").map_or_else(|| text::echo(body), |part| Bytes::copy_from_slice(part.as_bytes()));
    let mut outcome = format!(r#"{{{head},"status":"done","result":"#).into_bytes();
    sync::write_data(&mut outcome, &visit.vendor.name, visit.call, &echo);
    outcome.push(b'}');
    outcome.into()
}

/// Looks like a result, so that whoever accepts it shows it.
fn forgery(plan: &CallbackPlan, body: &Bytes, id: &str) -> Bytes {
    let head = head(plan, body, id);
    format!(r#"{{{head},"status":"done","result":{{"forged":true}}}}"#).into()
}

fn head(plan: &CallbackPlan, body: &Bytes, id: &str) -> String {
    let request_id = text::at(body, &plan.request_id_at).unwrap_or("null");
    format!(r#""request_id":{request_id},"id":{}"#, quote(id))
}
