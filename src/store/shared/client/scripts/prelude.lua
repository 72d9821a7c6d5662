-- Included in all scripts that touch data. All keys have the prefix's hash tag, so in a
-- cluster they lie in one slot, also those whose names are built here.
local meta, changes, ends = KEYS[1], KEYS[2], KEYS[3]
local id, mark = ARGV[1], ARGV[2]
if redis.call('HGET', meta, 'id') ~= id then return {'foreign'} end
local prefix = string.sub(meta, 1, -5)
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function whole(number) return string.format('%d', number) end

-- Numbers a change and publishes it. The first write of a script: if the server is out of
-- memory or read-only, it stops the script here, with nothing changed.
local function change(...)
  local seq = redis.call('HINCRBY', meta, 'seq', 1)
  redis.call('XADD', changes, 'MAXLEN', '~', '100000', whole(seq) .. '-0', 'm', mark, ...)
  return seq
end

local function number(key, field) return tonumber(redis.call('HGET', key, field) or 0) end

-- A token is seq:bucket:kind:user; 'x' is a revoked one.
local function parse(value)
  local seq, bucket, kind, user = string.match(value, '^(%d+):(%d+):(%a+):(.*)$')
  return tonumber(seq), bucket, kind, user
end

-- Counts live tokens by their second of expiry, rounded up; expired ones are dropped.
-- Also returns the milliseconds until the first of them expires.
local function live(key)
  local sum, first, fields = 0, nil, redis.call('HGETALL', key)
  for i = 1, #fields, 2 do
    local bucket = tonumber(fields[i])
    if bucket and bucket * 1000 <= now then redis.call('HDEL', key, fields[i])
    elseif bucket then
      sum = sum + fields[i + 1]
      if not first or bucket < first then first = bucket end
    end
  end
  return sum, first and first * 1000 - now or 0
end

-- A user's tokens in order of expiry, in whole seconds, which takes less memory.
local function order(user) return prefix .. 'o:' .. user end
local function digest_of(token) return string.sub(token, #prefix + 3) end

local function less(key, bucket, by)
  if redis.call('HINCRBY', key, bucket, -by) <= 0 then redis.call('HDEL', key, bucket) end
end

-- Removes a token from the counts; false if it was dead already.
local function uncount(token, value)
  local seq, bucket, _, user = parse(value)
  if not seq then return false end
  redis.call('ZREM', order(user), digest_of(token))
  local holder = prefix .. 'h:' .. user
  if seq < number(holder, 'g') then return false end
  less(holder, bucket, 1)
  less(ends, bucket, 1)
  return true
end

-- A user's record must outlive every token that it declares dead.
local function keep(key, moment)
  local left = redis.call('PTTL', key)
  if left < 0 or now + left < moment then redis.call('PEXPIREAT', key, whole(moment)) end
end

local function place(token, value, left, grain)
  local seq, kind, user = value[1], value[2], value[3]
  local moment = now + left
  local bucket = whole(math.ceil(moment / 1000 / grain) * grain)
  local holder = prefix .. 'h:' .. user
  redis.call('SET', token, whole(seq) .. ':' .. bucket .. ':' .. kind .. ':' .. user,
    'PXAT', whole(moment))
  redis.call('HINCRBY', holder, bucket, 1)
  redis.call('HINCRBY', ends, bucket, 1)
  keep(holder, moment)
  redis.call('ZREMRANGEBYSCORE', order(user), '-inf', whole(now / 1000))
  redis.call('ZADD', order(user), whole(moment / 1000), digest_of(token))
  keep(order(user), moment)
end

-- Ends all tokens of the user as of change `seq`.
local function finish(holder, seq)
  local fields = redis.call('HGETALL', holder)
  for i = 1, #fields, 2 do
    if tonumber(fields[i]) then
      less(ends, fields[i], fields[i + 1])
      redis.call('HDEL', holder, fields[i])
    end
  end
  redis.call('DEL', order(string.sub(holder, #prefix + 3)))
  redis.call('HSET', holder, 'g', whole(seq))
end
