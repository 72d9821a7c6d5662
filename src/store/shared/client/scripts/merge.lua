-- Merges the state that a gateway holds into a store that lost it. The greatest version of
-- each item wins, so the order in which gateways do this does not matter.
-- ARGV: 3 kind, then its fields, repeated.
local kind = ARGV[3]
local at = 4
local function field() at = at + 1 return ARGV[at - 1] end
while at <= #ARGV do
  if kind == 'end' then
    local user, g, x = field(), tonumber(field()), tonumber(field())
    local holder = prefix .. 'h:' .. user
    if g > number(holder, 'g') then
      change('k', 'end', 'u', user, 'x', 'logout', 'g', whole(g))
      finish(holder, g)
    end
    if x > number(holder, 'x') then
      change('k', 'end', 'u', user, 'x', 'end', 'g', whole(x))
      redis.call('HSET', holder, 'x', whole(x))
      local known = redis.call('HGET', prefix .. 'users', user)
      local made = known and tonumber(string.match(known, '^(%d+)%.')) or x
      if made < x then redis.call('HDEL', prefix .. 'users', user) end
    end
    keep(holder, now + tonumber(field()))
  elseif kind == 'del' then
    local digest, left = field(), field()
    local token = prefix .. 't:' .. digest
    local known = redis.call('GET', token)
    if known ~= 'x' then
      change('k', 'del', 'd', digest)
      if known then uncount(token, known) end
      redis.call('SET', token, 'x', 'PX', left)
    end
  elseif kind == 'put' then
    local digest, user, sort = field(), field(), field()
    local left, seq, grain = tonumber(field()), tonumber(field()), tonumber(field())
    local token = prefix .. 't:' .. digest
    if left > 0 and redis.call('EXISTS', token) == 0
      and seq >= number(prefix .. 'h:' .. user, 'g') then
      place(token, {seq, sort, user}, left, grain)
    end
  elseif kind == 'issued' then
    local user, count = field(), field()
    if tonumber(count) > number(prefix .. 'issued', user) then
      redis.call('HSET', prefix .. 'issued', user, count)
    end
  else
    -- user or key: the later change wins, unless the user was removed after it.
    local name, text = field(), field()
    local key = prefix .. (kind == 'user' and 'users' or 'keys')
    local seq = tonumber(string.match(text, '^%S+ (%d+)'))
    local known = redis.call('HGET', key, name)
    local known_seq = known and tonumber(string.match(known, '^%S+ (%d+)')) or -1
    local gone = kind == 'user' and number(prefix .. 'h:' .. name, 'x') or -1
    if seq > known_seq and seq > gone then
      change('k', kind, 'n', name, 't', text)
      redis.call('HSET', key, name, text)
    end
  end
end
return {'ok'}
