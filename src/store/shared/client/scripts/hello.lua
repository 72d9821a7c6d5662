-- KEYS: 1 meta, 2 changes. ARGV: 1 known id or empty, 2 id for a new store,
-- 3 and 4 number and mark of the last change seen, 5 how long (ms) a store that lost data must not
-- answer that it does not know a token.
local meta, changes = KEYS[1], KEYS[2]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local last = tonumber(ARGV[3])
local function whole(number) return string.format('%d', number) end
-- Numbers start at the clock's microseconds and increase by one per change. No server makes a
-- million changes per second, so a store that lost its numbers continues above every number
-- that any gateway has seen. If the clock was set back, the gateways raise the number when
-- they send their state.
local clock_seq = clock[1] * 1000000 + clock[2]
local function raise(seq)
  seq = math.max(seq, last, clock_seq) + 1000
  redis.call('HSET', meta, 'seq', whole(seq), 'settles', whole(now + ARGV[5]))
  return seq
end
local id = redis.call('HGET', meta, 'id')
if not id then
  redis.call('DEL', changes)
  redis.call('HSET', meta, 'id', ARGV[2], 'schema', '1', 'seq', whole(clock_seq))
  if ARGV[1] == '' then return {'new', ARGV[2], clock_seq} end
  return {'lost', ARGV[2], raise(0)}
end
local schema = redis.call('HGET', meta, 'schema')
if schema ~= '1' then return {'newer', schema or 'none', 0} end
local seq = tonumber(redis.call('HGET', meta, 'seq') or 0)
if ARGV[1] == '' then return {'new', id, seq} end
if ARGV[1] ~= id then
  -- Created again by a gateway that had no state, or older state.
  if last > seq or redis.call('HEXISTS', meta, 'settles') == 0 then seq = raise(seq) end
  return {'lost', id, seq}
end
if last == 0 and seq == 0 then return {'same', id, seq} end
local entry = redis.call('XRANGE', changes, whole(last) .. '-0', whole(last) .. '-0')
if #entry == 1 and entry[1][2][2] == ARGV[4] and seq >= last then return {'same', id, seq} end
if ARGV[4] == '' and seq == last then return {'same', id, seq} end
local first = redis.call('XRANGE', changes, '-', '+', 'COUNT', 1)
local first_seq = #first == 1 and tonumber(string.match(first[1][1], '^%d+')) or 0
if seq >= last and first_seq > last then return {'gap', id, seq} end
if seq >= last and ARGV[4] == '' then return {'gap', id, seq} end
return {'lost', id, raise(seq)}
