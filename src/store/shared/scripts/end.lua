-- KEYS: 4 holder, 5 users. ARGV: 3 user, 4 logout, end or remove.
local holder, user, mode = KEYS[4], ARGV[3], ARGV[4]
if mode == 'remove' and redis.call('HEXISTS', KEYS[5], user) == 0 then return {'none'} end
local seq = change('k', 'end', 'u', user, 'x', mode)
local count = live(holder)
finish(holder, seq)
if mode ~= 'logout' then redis.call('HSET', holder, 'x', whole(seq)) end
if mode == 'remove' then
  redis.call('HDEL', KEYS[5], user)
  redis.call('HDEL', prefix .. 'issued', user)
end
keep(holder, now + 3600000)
return {'ok', seq, count}
