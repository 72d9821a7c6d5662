-- wrk: rotate over the token file given in PB_TOKENS
local reqs, i = {}, 0
function init(args)
  for t in io.lines(os.getenv("PB_TOKENS")) do
    wrk.headers["Authorization"] = "Bearer " .. t
    reqs[#reqs + 1] = wrk.format("GET", "/v1/groups")
  end
end
function request()
  i = i % #reqs + 1
  return reqs[i]
end
