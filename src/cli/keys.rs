//! `keys`: makes, lists and revokes the keys of callers, at a running service.
//!
//! Never keeps a key: it is printed once, when it is made.

use std::time::Duration;

use clap::{
    Args, Subcommand,
    builder::{NonEmptyStringValueParser, PossibleValuesParser},
};
use serde::Deserialize;
use serde_json::{json, value::RawValue};

use super::{
    Failure,
    client::{self, Call, JSON, Talk, segment},
    print,
    times::Times,
};
use crate::{
    config::{parse_duration, write_duration},
    keys::Scope,
};

#[derive(Debug, Subcommand)]
pub(super) enum KeysCommand {
    /// Makes a key and prints it, this once
    Create(CreateArgs),
    /// Lists the keys, without the keys themselves
    List(Talk),
    /// Deletes a key: it is good for nothing within a second
    Revoke(RevokeArgs),
}

#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    /// Who or what it is for: shown wherever something says who did it
    #[arg(long)]
    name: String,
    /// The tenant whose jobs it is for; without one, all, which needs the scope operate or admin
    #[arg(long)]
    tenant: Option<String>,
    /// What it may do; can be given more than once
    #[arg(long = "scope", value_name = "SCOPE", required = true, value_delimiter = ',')]
    #[arg(value_parser = PossibleValuesParser::new(Scope::ALL.map(Scope::as_str)))]
    scopes: Vec<String>,
    /// How long it is good; for ever by default
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    expires_in: Option<Duration>,
    #[command(flatten)]
    talk: Talk,
}

#[derive(Debug, Args)]
pub(super) struct RevokeArgs {
    /// The key's id: what is between fg_ and the next _ in it
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    id: String,
    #[command(flatten)]
    talk: Talk,
}

#[derive(Deserialize)]
struct Made {
    key: String,
}

#[derive(Deserialize)]
struct List {
    keys: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    id: String,
    name: String,
    tenant: Option<String>,
    scopes: Vec<String>,
    created_at: String,
    created_by: String,
    expires_at: Option<String>,
    last_used_at: Option<String>,
}

pub(super) async fn run(command: KeysCommand) -> Result<(), Failure> {
    match command {
        KeysCommand::Create(args) => create(&args).await,
        KeysCommand::List(talk) => {
            let times = talk.times();
            talk.ask(Call::get("/keys"), |answer| list(answer, &times)).await
        }
        KeysCommand::Revoke(RevokeArgs { id, talk }) => {
            let call = Call::delete(format!("/keys/{}", segment(&id)));
            talk.ask(call, |_| Ok(print::shown(&format!("{id} is revoked")))).await
        }
    }
}

async fn create(args: &CreateArgs) -> Result<(), Failure> {
    let CreateArgs { name, tenant, scopes, expires_in, talk } = args;
    let expires_in = expires_in.map(write_duration);
    let body = json!({ "name": name, "tenant": tenant, "scopes": scopes, "expires_in": expires_in }).to_string();
    let call = Call { body: Some((JSON, body.into())), ..Call::post("/keys") };
    talk.ask(call, |made| Ok(client::read::<Made>(made)?.key)).await
}

fn list(answer: &RawValue, times: &Times) -> Result<String, Failure> {
    let List { keys } = client::read(answer)?;
    if keys.is_empty() {
        return Ok("there are no keys; `fetchgate keys create` makes one".to_owned());
    }
    let head = ["ID", "NAME", "TENANT", "SCOPES", "CREATED", "BY", "EXPIRES", "LAST USED"];
    let or_never = |at: Option<String>| at.map_or_else(|| "never".to_owned(), |at| times.short(&at));
    let rows = keys.into_iter().map(|row| {
        let tenant = row.tenant.unwrap_or_else(|| "all".to_owned());
        let (created, expires, used) =
            (times.short(&row.created_at), or_never(row.expires_at), or_never(row.last_used_at));
        [row.id, row.name, tenant, row.scopes.join(","), created, row.created_by, expires, used]
    });
    Ok(print::table(head, &["BY", "CREATED", "EXPIRES", "TENANT", "LAST USED"], rows))
}
