-- KEYS: 4 token user, 5 users. ARGV: 3 user, 4 logout, end or remove, 5 the digest of the one
-- of the user's tokens that stays, or empty.
local holder, user, mode = KEYS[4], ARGV[3], ARGV[4]
if mode == 'remove' and redis.call('HEXISTS', KEYS[5], user) == 0 then return {'none'} end
local kept = (ARGV[5] or '') ~= '' and prefix .. 't:' .. ARGV[5]
local kept_seq, _, kept_kind, kept_user = parse(kept and redis.call('GET', kept) or '')
local stays = kept_seq and kept_user == user and kept_seq >= number(holder, 'g')
local left = stays and redis.call('PTTL', kept) or 0
local seq = change('k', 'end', 'u', user, 'x', mode)
local count = live(holder)
finish(holder, seq)
if mode ~= 'logout' then redis.call('HSET', holder, 'x', whole(seq)) end
if mode == 'remove' then
  redis.call('HDEL', KEYS[5], user)
  redis.call('HDEL', prefix .. 'issued', user)
end
if left > 0 then
  -- Inserted again, after the end of the others.
  place(kept, {change('k', 'put', 'd', ARGV[5]), kept_kind, user}, left, 1)
  count = count - 1
end
keep(holder, now + 3600000)
return {'ok', seq, count}
