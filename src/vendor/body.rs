//! What a call's body says, made from a job: JSON, a form, or a text of another type.
//!
//! Never shows what was filled in from variables and files: see [`Body::shown`].

use std::fmt;

use bytes::Bytes;
use hyper::header::HeaderValue;
use url::form_urlencoded::byte_serialize;

use super::{
    outgoing::Content,
    template::{MAX_CONTENT, Name, RenderError, Scope, Template},
};

#[derive(Debug, Clone)]
pub enum Body {
    Json(Template),
    /// `application/x-www-form-urlencoded`: names of fields, and their values, which take no filters.
    Form(Vec<(String, Template)>),
    Text {
        text: Template,
        /// Its media type, as it is sent.
        kind: HeaderValue,
    },
}

impl Body {
    /// The body for one call, at most [`MAX_CONTENT`] bytes. A form's field without a value is left out, an array repeats it.
    pub(super) fn render(&self, scope: &Scope<'_>) -> Result<Content, RenderError> {
        match self {
            Body::Json(template) => Ok(Content::json(template.render(scope)?.into())),
            Body::Form(fields) => {
                let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
                Ok(Content { bytes: form(fields, scope)?, kind })
            }
            Body::Text { text, kind } => Ok(Content { bytes: text.render(scope)?.into(), kind: kind.clone() }),
        }
    }

    /// The same body as people may see it: every secret is masked.
    pub fn shown(&self) -> Body {
        match self {
            Body::Json(template) => Body::Json(template.shown().clone()),
            Body::Form(fields) => {
                Body::Form(fields.iter().map(|(name, value)| (name.clone(), value.shown().clone())).collect())
            }
            Body::Text { text, kind } => Body::Text { text: text.shown().clone(), kind: kind.clone() },
        }
    }

    /// Whether the name occurs.
    pub fn uses(&self, name: Name) -> bool {
        match self {
            Body::Json(template) | Body::Text { text: template, .. } => template.uses(name),
            Body::Form(fields) => fields.iter().any(|(_, value)| value.uses(name)),
        }
    }
}

fn form(fields: &[(String, Template)], scope: &Scope<'_>) -> Result<Bytes, RenderError> {
    let mut form = String::new();
    for (name, value) in fields {
        for text in value.render_field(scope)? {
            let separator = if form.is_empty() { "" } else { "&" };
            let (name, text) = (byte_serialize(name.as_bytes()), byte_serialize(text.as_bytes()));
            form.extend([separator].into_iter().chain(name).chain(["="]).chain(text));
            if form.len() > MAX_CONTENT {
                let detail = "makes the body too large: it may have 8 MiB".to_owned();
                return Err(RenderError { pointer: "/payload".to_owned(), detail });
            }
        }
    }
    Ok(form.into())
}

/// In words, with its literal text: only of what [`Body::shown`] gives may this be shown.
impl fmt::Display for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Body::Json(template) => template.fmt(f),
            Body::Form(fields) => {
                f.write_str("a form:")?;
                fields
                    .iter()
                    .enumerate()
                    .try_for_each(|(i, (name, value))| write!(f, "{} {name} = {value}", if i == 0 { "" } else { "," }))
            }
            Body::Text { text, kind } => write!(f, "{} text: {text}", kind.to_str().unwrap_or_default()),
        }
    }
}
