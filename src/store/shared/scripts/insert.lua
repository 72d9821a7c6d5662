-- KEYS: 4 holder, 5 token, 6 users. ARGV: 3 digest, 4 user, 5 kind, 6 life in ms,
-- 7 grain, 8 epoch, 9 and 10 caps, 11 the user's revision or nothing.
local holder, token = KEYS[4], KEYS[5]
if number(holder, 'x') > tonumber(ARGV[8]) then return {'ended'} end
if ARGV[11] ~= '' then
  local user = redis.call('HGET', KEYS[6], ARGV[4])
  if not user or string.match(user, '^%S+') ~= ARGV[11] then return {'changed'} end
end
local known = redis.call('GET', token)
if not known or known == 'x' then
  if live(holder) >= tonumber(ARGV[9]) then return {'user_full'} end
  if live(ends) >= tonumber(ARGV[10]) then return {'full'} end
end
local seq = change('k', 'put', 'd', ARGV[3])
if known then uncount(known) end
place(token, {seq, ARGV[5], ARGV[4]}, tonumber(ARGV[6]), tonumber(ARGV[7]))
redis.call('HINCRBY', prefix .. 'issued', ARGV[4], 1)
return {'ok', seq}
