//! A small server that knows prepared statements and COPY.

use std::collections::BTreeMap;

use crate::prepared::rewrite;
use crate::prepared::tests::framed;

/// It skips after errors, and remembers what was run.
#[derive(Debug, Default)]
pub(crate) struct Server {
    pub statements: BTreeMap<Vec<u8>, Vec<u8>>,
    bound: Option<Vec<u8>>,
    skips: bool,
    copies: Option<Copies>,
}

/// What began the COPY that it takes data for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Copies {
    Execute,
    Query,
}

impl Server {
    /// Whether it takes COPY data.
    pub(crate) fn copies(&self) -> bool {
        self.copies.is_some()
    }

    pub(crate) fn reply(&mut self, tag: u8, body: &[u8], out: &mut Vec<u8>) {
        if let Some(copies) = self.copies {
            return self.copy(copies, tag, body, out);
        }
        if tag == b'S' {
            // The transaction ends, and its portal with it.
            (self.skips, self.bound) = (false, None);
            return out.extend(framed(b'Z', b"I"));
        }
        if self.skips {
            return;
        }
        let answer = match tag {
            b'P' => self.parse(body),
            b'B' => {
                let name = rewrite::cstr(rewrite::cstr(body).unwrap().1).unwrap().0;
                self.get(name).map(|sql| {
                    self.bound = Some(sql);
                    framed(b'2', &[])
                })
            }
            b'D' => self.get(rewrite::cstr(&body[1..]).unwrap().0).map(|sql| {
                let rows = framed(b'T', &[&[0, 1][..], &sql, &[0; 19]].concat());
                let has_rows = !sql.starts_with(b"copy") && !sql.starts_with(b"DEALLOCATE");
                [framed(b't', &[0, 0]), if has_rows { rows } else { framed(b'n', &[]) }].concat()
            }),
            b'C' => {
                if body[0] == b'S' {
                    self.statements.remove(rewrite::cstr(&body[1..]).unwrap().0);
                }
                Ok(framed(b'3', &[]))
            }
            b'E' => self.execute(out),
            b'Q' => return self.query(body, out),
            _ => return,
        };
        match answer {
            Ok(reply) => out.extend(reply),
            Err(message) => {
                out.extend(error(&message));
                self.skips = true;
            }
        }
    }

    fn copy(&mut self, copies: Copies, tag: u8, body: &[u8], out: &mut Vec<u8>) {
        match (tag, body) {
            (b'S' | b'H', _) => return,
            (b'd', b"bad") => out.extend(error("bad data")),
            (b'd', _) => return,
            (b'f', _) => out.extend(error("the client failed it")),
            (b'c', _) => out.extend(framed(b'C', b"COPY 1\0")),
            _ => panic!("{} in COPY", tag as char),
        }
        self.copies = None;
        match copies {
            Copies::Query => out.extend(framed(b'Z', b"I")),
            Copies::Execute => self.skips = tag != b'c',
        }
    }

    fn parse(&mut self, body: &[u8]) -> Result<Vec<u8>, String> {
        let (name, rest) = rewrite::cstr(body).unwrap();
        let sql = rewrite::cstr(rest).unwrap().0;
        if name.is_empty() {
            self.statements.remove(name);
        }
        if sql == b"bad" {
            return Err("syntax error".to_owned());
        }
        if self.statements.contains_key(name) {
            return Err(format!("\"{}\" already exists", String::from_utf8_lossy(name)));
        }
        self.statements.insert(name.to_vec(), sql.to_vec());
        Ok(framed(b'1', &[]))
    }

    fn get(&self, name: &[u8]) -> Result<Vec<u8>, String> {
        let name_of = String::from_utf8_lossy(name);
        self.statements.get(name).cloned().ok_or_else(|| match name {
            b"" => "unnamed prepared statement does not exist".to_owned(),
            _ => format!("\"{name_of}\" does not exist"),
        })
    }

    fn execute(&mut self, out: &mut Vec<u8>) -> Result<Vec<u8>, String> {
        let sql = self.bound.take().ok_or("portal does not exist")?;
        match sql.as_slice() {
            b"copy" => {
                self.copies = Some(Copies::Execute);
                Ok(framed(b'G', &[0, 0, 0]))
            }
            // It fails before it reads anything.
            b"copy view" => {
                out.extend(framed(b'G', &[0, 0, 0]));
                Err("cannot copy to a view".to_owned())
            }
            sql if sql.starts_with(b"DEALLOCATE ") => self.deallocate(&sql[11..]),
            sql => Ok([framed(b'D', sql), framed(b'C', b"SELECT 1\0")].concat()),
        }
    }

    fn deallocate(&mut self, name: &[u8]) -> Result<Vec<u8>, String> {
        let known = self.get(name);
        self.statements.remove(name);
        known.map(|_| framed(b'C', b"DEALLOCATE\0"))
    }

    fn query(&mut self, body: &[u8], out: &mut Vec<u8>) {
        self.statements.remove(&b""[..]);
        self.bound = None;
        let sql = rewrite::cstr(body).unwrap().0;
        let done = if sql == b"DISCARD ALL" {
            self.statements.clear();
            Ok(framed(b'C', b"DISCARD ALL\0"))
        } else if sql == b"copy" {
            self.copies = Some(Copies::Query);
            return out.extend(framed(b'G', &[0, 0, 0]));
        } else if let Some(name) = sql.strip_prefix(b"DEALLOCATE ") {
            self.deallocate(name)
        } else {
            Ok(framed(b'C', b"SELECT 1\0"))
        };
        out.extend(done.unwrap_or_else(|message| error(&message)));
        out.extend(framed(b'Z', b"I"));
    }
}

fn error(message: &str) -> Vec<u8> {
    framed(b'E', format!("SERROR\0C26000\0M{message}\0\0").as_bytes())
}
