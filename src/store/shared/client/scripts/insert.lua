-- KEYS: 4 token user, 5 token, 6 users. ARGV: 3 digest, 4 user, 5 kind, 6 life in ms,
-- 7 grain, 8 epoch, 9 and 10 caps, 11 the user's revision or empty, 12 the digest of the
-- user's token that ends for this one, or empty.
local holder, token = KEYS[4], KEYS[5]
if number(holder, 'x') > tonumber(ARGV[8]) then return {'ended'} end
if ARGV[11] ~= '' then
  local user = redis.call('HGET', KEYS[6], ARGV[4])
  if not user or string.match(user, '^%S+') ~= ARGV[11] then return {'changed'} end
end
local known = redis.call('GET', token)
local leaves, value = nil, nil
local of_user, next_of_user = live(holder)
local of_all, next_of_all = live(ends)
if not known or known == 'x' then
  if of_user >= tonumber(ARGV[9]) then
    if ARGV[12] ~= '' then
      leaves = prefix .. 't:' .. ARGV[12]
      value = redis.call('GET', leaves)
      local seq, _, _, user = parse(value or '')
      if not seq or user ~= ARGV[4] or seq < number(holder, 'g') then leaves = nil end
    end
    if not leaves then
      local oldest = redis.call('ZRANGEBYSCORE', order(ARGV[4]), whole(now / 1000), '+inf', 'LIMIT', 0, 16)
      return {'user_full', next_of_user, unpack(oldest)}
    end
  elseif of_all >= tonumber(ARGV[10]) then return {'full', next_of_all} end
  of_user, of_all = of_user + 1, of_all + 1
end
if leaves then
  change('k', 'del', 'd', ARGV[12])
  uncount(leaves, value)
  redis.call('SET', leaves, 'x', 'KEEPTTL')
  of_user, of_all = of_user - 1, of_all - 1
end
local seq = change('k', 'put', 'd', ARGV[3])
if known then uncount(token, known) end
place(token, {seq, ARGV[5], ARGV[4]}, tonumber(ARGV[6]), tonumber(ARGV[7]))
redis.call('HINCRBY', prefix .. 'issued', ARGV[4], 1)
return {'ok', seq, of_user, of_all, leaves and 1 or 0}
