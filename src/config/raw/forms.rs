//! Keys that may be written in more than one form: a word or a table, one table or a list.
//!
//! Never accepts a form without saying which: what fits none is an error that names what was expected.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{
        self, MapAccess, SeqAccess, Unexpected, Visitor,
        value::{MapAccessDeserializer, SeqAccessDeserializer},
    },
};

use super::{Breaker, BreakerTable, RateHeader, RateHeaders, Scalar, TextOr};

impl<'de, T: Deserialize<'de>> Deserialize<'de> for TextOr<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<TextOr<T>, D::Error> {
        struct Either<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Either<T> {
            type Value = TextOr<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a table")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<TextOr<T>, E> {
                Ok(TextOr::Text(text.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<TextOr<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(TextOr::Table)
            }
        }

        deserializer.deserialize_any(Either(PhantomData))
    }
}

impl<'de> Deserialize<'de> for RateHeaders {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<RateHeaders, D::Error> {
        struct AnyOf;

        impl<'de> Visitor<'de> for AnyOf {
            type Value = RateHeaders;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("rate headers")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<RateHeaders, E> {
                Ok(RateHeaders::Word(text.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RateHeaders, A::Error> {
                RateHeader::deserialize(MapAccessDeserializer::new(map)).map(|table| RateHeaders::Named(vec![table]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<RateHeaders, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(list)).map(RateHeaders::Named)
            }
        }

        deserializer.deserialize_any(AnyOf)
    }
}

impl<'de> Deserialize<'de> for Breaker {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Breaker, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Breaker;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a breaker")
            }

            fn visit_bool<E: de::Error>(self, is_on: bool) -> Result<Breaker, E> {
                if is_on { Err(E::invalid_value(Unexpected::Bool(true), &self)) } else { Ok(Breaker::Off) }
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Breaker, A::Error> {
                BreakerTable::deserialize(MapAccessDeserializer::new(map)).map(|table| Breaker::Table(Box::new(table)))
            }
        }

        deserializer.deserialize_any(Either)
    }
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Scalar, D::Error> {
        struct AsText;

        impl Visitor<'_> for AsText {
            type Value = Scalar;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Scalar, E> {
                Ok(Scalar(text.to_owned()))
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Scalar, E> {
                Ok(Scalar(number.to_string()))
            }

            fn visit_bool<E: de::Error>(self, yes: bool) -> Result<Scalar, E> {
                Ok(Scalar(yes.to_string()))
            }
        }

        deserializer.deserialize_any(AsText)
    }
}
