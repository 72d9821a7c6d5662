//! The upstream 'Webapp': one epoll thread, HTTP/1.1 keep-alive, fixed bodies.
//! It also checks that the proxy did its job: the upstream's own token in Authorization and an
//! X-Forwarded-For header. A request that fails the check gets 500, which the load tools report.
//!   GET /v1/media/... -> 64 KiB   GET any -> 300 B   POST any -> body discarded, 300 B
//!   POST /v1/users/login -> the token, as the Webapp gives it   GET /stats -> counters
use std::collections::HashMap;
use std::fmt::Write as _;

struct Conn {
    fd: i32,
    buf: Vec<u8>,
    out: Vec<u8>,
    skip: usize,
    chunked: bool,
}

fn arg(name: &str) -> Option<String> {
    let mut it = std::env::args();
    while let Some(a) = it.next() {
        if a == name {
            return it.next();
        }
    }
    None
}

fn response(status: &str, body: &[u8]) -> Vec<u8> {
    let mut h = String::new();
    write!(
        h,
        "HTTP/1.1 {status}\r\nDate: Sun, 22 Nov 2026 22:00:00 GMT\r\nServer: webapp\r\nContent-Type: application/json\r\nCache-Control: no-store\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )
    .unwrap();
    let mut v = h.into_bytes();
    v.extend_from_slice(body);
    v
}

/// Now and in a week, as a `Date` field and as the Webapp writes the end of a token.
fn times() -> (String, String) {
    let text = |at: libc::time_t, form: &std::ffi::CStr| unsafe {
        let mut parts: libc::tm = std::mem::zeroed();
        libc::gmtime_r(&at, &mut parts);
        let mut out = [0u8; 64];
        let n = libc::strftime(out.as_mut_ptr() as _, out.len(), form.as_ptr(), &parts);
        String::from_utf8_lossy(&out[..n]).into_owned()
    };
    let now = unsafe { libc::time(std::ptr::null_mut()) };
    (text(now, c"%a, %d %b %Y %H:%M:%S GMT"), text(now + 604_800, c"%Y-%m-%d %H:%M:%S+00:00"))
}

fn login(token: &str) -> Vec<u8> {
    let (date, ends) = times();
    let body = format!("{{\"users\":[{{\"token\":\"{token}\",\"expires_after\":\"{ends}\"}}],\"meta\":{{\"version\":\"v2.53.3\",\"api_status\":\"stable\"}}}}");
    format!("HTTP/1.1 200 OK\r\nDate: {date}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn main() {
    let listen = arg("--listen").unwrap_or("127.0.0.1:9000".into());
    let want = arg("--token").map(|t| format!("Bearer {t}"));
    let mut small = String::from("{\"items\":[");
    while small.len() < 290 {
        small.push_str("{\"id\":17,\"n\":\"x\"},");
    }
    small.truncate(298);
    small.push_str("]}");
    let r_small = response("200 OK", small.as_bytes());
    let r_big = response("200 OK", &vec![b'a'; 65536]);
    let r_bad = response("500 Internal Server Error", b"{\"error\":\"proxy did not do its job\"}");
    let (mut n_ok, mut n_bad, mut n_acc) = (0u64, 0u64, 0u64);
    unsafe {
        let l = libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0);
        let one = 1i32;
        libc::setsockopt(l, libc::SOL_SOCKET, libc::SO_REUSEADDR, &one as *const _ as _, 4);
        let addr: std::net::SocketAddrV4 = listen.parse().unwrap();
        let mut sa: libc::sockaddr_in = std::mem::zeroed();
        sa.sin_family = libc::AF_INET as _;
        sa.sin_port = addr.port().to_be();
        sa.sin_addr.s_addr = u32::from_ne_bytes(addr.ip().octets());
        assert_eq!(libc::bind(l, &sa as *const _ as _, std::mem::size_of_val(&sa) as _), 0, "bind");
        assert_eq!(libc::listen(l, 4096), 0);
        let ep = libc::epoll_create1(0);
        let mut ev = libc::epoll_event { events: libc::EPOLLIN as u32, u64: u64::MAX };
        libc::epoll_ctl(ep, libc::EPOLL_CTL_ADD, l, &mut ev);
        let mut conns: HashMap<i32, Conn> = HashMap::new();
        let mut evs: Vec<libc::epoll_event> = vec![std::mem::zeroed(); 256];
        let mut rb = vec![0u8; 256 * 1024];
        loop {
            let n = libc::epoll_wait(ep, evs.as_mut_ptr(), 256, -1);
            for i in 0..n.max(0) as usize {
                let e = evs[i];
                if e.u64 == u64::MAX {
                    loop {
                        let fd = libc::accept4(l, std::ptr::null_mut(), std::ptr::null_mut(), libc::SOCK_NONBLOCK);
                        if fd < 0 {
                            break;
                        }
                        n_acc += 1;
                        libc::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, &one as *const _ as _, 4);
                        let big = 1 << 20;
                        libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, &big as *const _ as _, 4);
                        let mut ev = libc::epoll_event {
                            events: (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLET) as u32,
                            u64: fd as u64,
                        };
                        libc::epoll_ctl(ep, libc::EPOLL_CTL_ADD, fd, &mut ev);
                        conns.insert(fd, Conn { fd, buf: vec![], out: vec![], skip: 0, chunked: false });
                    }
                    continue;
                }
                let fd = e.u64 as i32;
                let Some(c) = conns.get_mut(&fd) else { continue };
                let mut dead = false;
                if !c.out.is_empty() {
                    let w = libc::send(c.fd, c.out.as_ptr() as _, c.out.len(), libc::MSG_NOSIGNAL);
                    if w > 0 {
                        c.out.drain(..w as usize);
                    }
                }
                if e.events & (libc::EPOLLIN | libc::EPOLLHUP | libc::EPOLLERR) as u32 != 0 {
                    loop {
                        let r = libc::recv(c.fd, rb.as_mut_ptr() as _, rb.len(), 0);
                        if r == 0 {
                            dead = true;
                            break;
                        }
                        if r < 0 {
                            if *libc::__errno_location() != libc::EAGAIN {
                                dead = true;
                            }
                            break;
                        }
                        let full = r as usize == rb.len();
                        let mut data = &rb[..r as usize];
                        if c.skip > 0 {
                            let k = c.skip.min(data.len());
                            c.skip -= k;
                            data = &data[k..];
                            if c.skip == 0 {
                                c.out.extend_from_slice(&r_small);
                            }
                        }
                        c.buf.extend_from_slice(data);
                        while c.skip == 0 && !c.buf.is_empty() {
                            if c.chunked {
                                // only the end matters: the body is discarded
                                if c.buf.ends_with(b"0\r\n\r\n") {
                                    c.buf.clear();
                                    c.chunked = false;
                                    c.out.extend_from_slice(&r_small);
                                } else {
                                    let k = c.buf.len().saturating_sub(8);
                                    c.buf.drain(..k);
                                }
                                break;
                            }
                            let mut hs = [httparse::EMPTY_HEADER; 48];
                            let mut req = httparse::Request::new(&mut hs);
                            let len = match req.parse(&c.buf) {
                                Ok(httparse::Status::Complete(n)) => n,
                                Ok(_) => break,
                                Err(_) => {
                                    dead = true;
                                    break;
                                }
                            };
                            let (mut auth, mut xff, mut cl, mut te) = (want.is_none(), want.is_none(), 0usize, false);
                            for h in req.headers.iter() {
                                let nm = h.name;
                                if want.is_some() && nm.eq_ignore_ascii_case("authorization") {
                                    auth = Some(h.value) == want.as_deref().map(str::as_bytes);
                                } else if want.is_some() && nm.eq_ignore_ascii_case("x-forwarded-for") {
                                    xff = h.value.len() > 6;
                                } else if nm.eq_ignore_ascii_case("content-length") {
                                    cl = std::str::from_utf8(h.value).unwrap().trim().parse().unwrap_or(0);
                                } else if nm.eq_ignore_ascii_case("transfer-encoding") {
                                    te = true;
                                }
                            }
                            let path = req.path.unwrap_or("");
                            if path == "/stats" {
                                let s = format!("{{\"ok\":{n_ok},\"bad\":{n_bad},\"accepted\":{n_acc}}}");
                                c.out.extend_from_slice(&response("200 OK", s.as_bytes()));
                                c.buf.drain(..len);
                                continue;
                            }
                            if path == "/v1/users/login" && c.buf.len() >= len + cl {
                                let answer = login(&arg("--token").unwrap_or("nobodys".into()));
                                c.out.extend_from_slice(&answer);
                                c.buf.drain(..len + cl);
                                continue;
                            }
                            let ok = auth && xff;
                            if ok {
                                n_ok += 1
                            } else {
                                n_bad += 1
                            }
                            let big = path.starts_with("/v1/media/");
                            if te {
                                c.chunked = true;
                                c.buf.drain(..len);
                                continue;
                            }
                            if cl > 0 {
                                let have = (c.buf.len() - len).min(cl);
                                c.buf.drain(..len + have);
                                c.skip = cl - have;
                                if c.skip == 0 {
                                    c.out.extend_from_slice(if ok { &r_small } else { &r_bad });
                                }
                                continue;
                            }
                            if len == c.buf.len() {
                                c.buf.clear()
                            } else {
                                c.buf.drain(..len);
                            }
                            c.out.extend_from_slice(if !ok {
                                &r_bad
                            } else if big {
                                &r_big
                            } else {
                                &r_small
                            });
                        }
                        if !full {
                            break;
                        }
                    }
                    if !c.out.is_empty() {
                        let w = libc::send(c.fd, c.out.as_ptr() as _, c.out.len(), libc::MSG_NOSIGNAL);
                        if w as usize == c.out.len() {
                            c.out.clear();
                        } else if w > 0 {
                            c.out.drain(..w as usize);
                        }
                    }
                }
                if dead {
                    libc::close(fd);
                    conns.remove(&fd);
                }
            }
        }
    }
}
